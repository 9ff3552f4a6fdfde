from __future__ import annotations

import copy

import pytest
import torch
from sam2_runs import assert_identical, images, run_both, run_video
from torch import fx, nn

from qsam2_ao.errors import GraphTraceError, QConfigError
from qsam2_ao.graph import REGIONS, Part, find_parts, trace_regions
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.models.official import OFFICIAL, build_official


def test_every_region_has_parts_in_the_order_of_the_model() -> None:
    parts = find_parts(build_embedded())
    assert tuple(dict.fromkeys(part.region for part in parts)) == REGIONS
    paths = [part.path for part in parts]
    assert "image_encoder" in paths
    assert "sam_mask_decoder.output_hypernetworks_mlps.3" in paths
    assert paths[-2:] == ["obj_ptr_proj", "obj_ptr_tpos_proj"]


def test_optional_parts_that_a_model_lacks_are_left_out() -> None:
    model = build_embedded(proj_tpos_enc_in_obj_ptrs=False, add_tpos_enc_to_obj_ptrs=False)
    assert [part.path for part in find_parts(model, ["obj_ptr_proj"])] == ["obj_ptr_proj"]


def test_a_lone_layer_keeps_its_own_name() -> None:
    assert Part("mask_decoder", "sam_mask_decoder.conv_s0").layer_name("layer") == "sam_mask_decoder.conv_s0"
    assert Part("image_encoder", "image_encoder").layer_name("trunk.x") == "image_encoder.trunk.x"


def test_unknown_region_and_foreign_model_are_refused() -> None:
    with pytest.raises(QConfigError, match="unknown region 'encoder'"):
        find_parts(build_embedded(), ["encoder"])
    with pytest.raises(GraphTraceError, match="expected a SAM2 model"):
        find_parts(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = build_embedded()
    model.memory_encoder.fuser.layers[0].act = torch.nn.GELU()
    model.memory_encoder.fuser.layers[1] = _Foreign()
    before = dict(model.named_modules())
    with pytest.raises(GraphTraceError, match=r"memory_encoder\.fuser\.layers\.1 is a .*_Foreign"):
        trace_regions(model)
    assert dict(model.named_modules()) == before


class _Foreign(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.parametrize("training", [False, True])
def test_the_embedded_model_is_the_same_to_the_bit(training: bool) -> None:
    model = build_embedded().train(training)
    traced = copy.deepcopy(model)
    parts = trace_regions(traced)
    for part in parts:
        lone = isinstance(model.get_submodule(part.path), (nn.Linear, nn.Conv2d))
        assert isinstance(traced.get_submodule(part.path), fx.GraphModule) != lone  # a lone layer has no graph inside
    assert list(traced.state_dict()) == list(model.state_dict())
    batch = images(2, 96)
    torch.manual_seed(0)  # dropout
    expected = run_both(model, batch)
    torch.manual_seed(0)
    assert_identical(run_both(traced, batch), expected)


def test_gradients_are_the_same_to_the_bit() -> None:
    model = build_embedded().eval()
    traced = copy.deepcopy(model)
    trace_regions(traced)
    batch = images(1, 96)
    for each in (model, traced):
        sum(t.float().square().mean() for t in run_video(each, batch) if t.requires_grad).backward()
    ours = {n: p.grad for n, p in traced.named_parameters()}
    for name, parameter in model.named_parameters():
        grad = ours[name]
        assert (grad is None) == (parameter.grad is None), name
        if grad is not None:
            assert torch.equal(grad, parameter.grad), name


@pytest.mark.slow
@pytest.mark.parametrize(("side", "batch", "frames"), [(64, 1, 2), (128, 3, 5), (160, 1, 9)])
@torch.no_grad()
def test_one_trace_takes_any_size_batch_and_number_of_frames(side: int, batch: int, frames: int) -> None:
    """Traced once; input sizes, objects and memory frames come at run time."""
    model = build_embedded(image_size=side)
    traced = copy.deepcopy(model)
    trace_regions(traced)
    assert_identical(run_video(traced, images(batch, side), frames), run_video(model, images(batch, side), frames))
    other = build_embedded(image_size=96)
    other_traced = copy.deepcopy(other)
    for part in find_parts(other_traced):
        other_traced.set_submodule(part.path, traced.get_submodule(part.path))
    assert_identical(run_video(other_traced, images(1, 96), 3), run_video(other, images(1, 96), 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OFFICIAL))
@torch.no_grad()
def test_every_official_size_is_the_same_to_the_bit(name: str) -> None:
    model = build_official(name, image_size=128)
    traced = copy.deepcopy(model)
    trace_regions(traced)
    batch = images(1, 128)
    for training in (False, True):
        torch.manual_seed(0)  # dropout
        expected = run_both(model.train(training), batch)
        torch.manual_seed(0)
        assert_identical(run_both(traced.train(training), batch), expected)
