"""Whole models on oneDNN's int8 products against the packed models; ``test_avx2`` runs this file without VNNI."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import logits
from sam2_runs import error, images, noisy, run_both
from torch import nn

from qsam2_ao import compile_qsam2, convert_qsam2, coverage_report, layer_times, load_qsam2, save_qsam2
from qsam2_ao.deploy.onednn.codes import OneDNNCodes
from qsam2_ao.deploy.onednn.linear import OneDNNLinear
from qsam2_ao.deploy.onednn.processor import _probe, why_no_onednn
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.deploy.targets import auto_target, lower_to
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError
from qsam2_ao.export import export_aoti
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.native import why_unfit_for_kernels
from qsam2_ao.stage import stage_of

REASON = why_no_onednn(torch.device("cpu"))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def packed(packed_file: Path) -> Any:
    return load_qsam2(packed_file)


@pytest.fixture(scope="module")
def lowered(packed_file: Path) -> Any:
    return load_qsam2(packed_file, target="onednn")


@pytest.mark.parametrize("autocast", [False, True])
@torch.inference_mode()
def test_images_and_videos(packed: Any, lowered: Any, autocast: bool) -> None:
    x = images(2, 96)
    exact = run_both(packed, x)
    nearby = run_both(packed, noisy(x, 1e-6))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        theirs, ours = run_both(packed, x), run_both(lowered, x)
    assert len(ours) == len(exact)
    for i, (mine, other, moved, expected) in enumerate(zip(ours, theirs, nearby, exact, strict=True)):
        assert mine.shape == expected.shape
        if not autocast:
            assert mine.dtype == expected.dtype, f"output {i} in the caller's dtype"
        # Up to codes that fall on the other side of a step, as they do where the image differs by rounding errors;
        # under autocast no worse than the packed model.
        allowed = max(0.02, 1.2 * error(other, expected), 1.2 * error(moved, expected))
        assert error(mine, expected) < allowed, f"output {i}"


def test_masks_of_a_predictor(packed: Any, lowered: Any) -> None:
    theirs, ours = logits(packed), logits(lowered)
    assert np.mean((theirs > 0) != (ours > 0)) < 0.005


def test_every_layer_runs_there_and_the_report_says_so(lowered: Any) -> None:
    rows = [row for row in coverage_report(lowered).layers if row.weight_bits < 32]
    assert {(row.target, row.reason) for row in rows} == {("onednn", "")}
    assert not any(isinstance(p, PackedIntxTensor) for p in lowered.parameters())
    kinds = [type(m) for m in lowered.image_encoder.modules()]
    assert nn.GELU not in kinds
    first = [m for m in lowered.image_encoder.modules() if isinstance(m, OneDNNLinear) and m.activation == "gelu"]
    assert first
    assert all(layer.grid is not None for layer in first), "GELU and rounding are part of the layer"
    assert lowered.image_encoder.neck.backbone_channel_list  # what SAM2 reads of its parts is still there


def test_what_stays_packed_says_why(packed_file: Path) -> None:
    """A convolution with padding that oneDNN does not have, in a model that is otherwise lowered."""
    model = load_qsam2(packed_file)
    model.memory_encoder.get_submodule("mask_downsampler.encoder.0").padding_mode = "circular"
    lower_to(model, "onednn")
    left = {name: why for name, (target, why) in stage_of(model).targets.items() if target == "packed"}
    assert list(left) == ["memory_encoder.mask_downsampler.encoder.0"]
    assert "circular" in str(*left.values())


def test_weight_only_parts_are_left_as_they_are(tmp_path: Path) -> None:
    model = convert_qsam2(build_embedded(), "w4a16", vrc=None, progress=False)
    encoder = model.image_encoder
    with pytest.warns(UserWarning, match="no layer runs on the target 'onednn', all stay packed: Its input is not"):
        taken = stage_of(lower_to(model, "onednn")).targets.values()
    assert {target for target, _ in taken} == {"packed"}
    assert all("not quantized" in str(reason) for _, reason in taken)
    assert model.image_encoder is encoder
    save_qsam2(model, tmp_path / "again.safetensors")
    assert load_qsam2(tmp_path / "again.safetensors").state_dict().keys() == model.state_dict().keys()


@torch.inference_mode()
def test_nan_is_carried_past_the_codes(lowered: Any) -> None:
    x = images(2, 96)
    x[1, 0, 5, 5] = math.nan
    out = lowered.image_encoder(x)
    for features in out["backbone_fpn"]:
        assert features[0].isfinite().all()
        assert features[1].isnan().all()
    assert all(position.isfinite().all() for position in out["vision_pos_enc"])


@torch.inference_mode()
def test_copies_and_pickles(lowered: Any) -> None:
    x = images(1, 96)
    expected = lowered.image_encoder(x)["backbone_fpn"]
    for other in (copy.deepcopy(lowered.image_encoder), pickle.loads(pickle.dumps(lowered.image_encoder))):
        assert all(map(torch.equal, other(x)["backbone_fpn"], expected))


def test_it_is_not_saved_lowered_again_compiled_or_packaged(lowered: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match='target="packed"'):
        save_qsam2(lowered, tmp_path / "again.safetensors")
    with pytest.raises(UnsupportedLayerError, match="not packed codes"):
        lower_to(lowered, "onednn")
    for refuse in (compile_qsam2, lambda model: export_aoti(model, tmp_path / "package")):
        with pytest.raises(UnsupportedLayerError, match='load the file with target="packed"'):
            refuse(lowered)
    assert not list(tmp_path.iterdir())


def test_layers_are_timed(lowered: Any) -> None:
    times = layer_times(lowered, rounds=1, progress=False)
    assert "image_encoder.trunk.blocks.0.attn.qkv" in times
    assert "memory_encoder.fuser.layers.0.dwconv" in times


def test_auto_takes_it_where_the_kernels_cannot_run(packed_file: Path) -> None:
    target, missing = auto_target("cpu", load_qsam2(packed_file))
    assert (target == "int8") == (missing is None)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = load_qsam2(packed_file, target="auto")
    taken = {target for target, _ in stage_of(model).targets.values()}
    assert target in taken
    if why_unfit_for_kernels() is not None:
        assert taken <= {"onednn", "dequantized"}, "for this small model, whichever was faster"
        assert not [w for w in said if "slower" in str(w.message)], "nothing is amiss on such a CPU"
        assert any(isinstance(m, OneDNNCodes) for m in model.modules()) == ("onednn" in taken)
        assert auto_target()[0] == "onednn"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["onednn", "dequantized"])
@torch.inference_mode()
def test_a_model_that_is_cast_goes_on_in_float32(packed_file: Path, target: str, dtype: torch.dtype) -> None:
    model = load_qsam2(packed_file, target=target)
    x = images(1, 96)
    expected = model.image_encoder(x.to(dtype).float())["backbone_fpn"]
    found = copy.deepcopy(model).to(dtype).image_encoder(x.to(dtype))["backbone_fpn"]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert error(ours, theirs) < 0.02


def test_the_default_dtype_does_not_decide_whether_products_run() -> None:
    _probe.cache_clear()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert why_no_onednn(torch.device("cpu")) is None
    finally:
        torch.set_default_dtype(torch.float32)
        _probe.cache_clear()
