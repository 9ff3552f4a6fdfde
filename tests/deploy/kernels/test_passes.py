"""Whole models on the int8 kernels against the packed models that they come from."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2_runs import error, images, run_both, run_video
from torch import Tensor, nn

from qsam2_ao import coverage_report, load_qsam2, save_qsam2
from qsam2_ao.deploy import choice, targets
from qsam2_ao.deploy.kernels.attention import WindowAttention
from qsam2_ao.deploy.kernels.bands import Bands
from qsam2_ao.deploy.kernels.codes import QuantizeCodes
from qsam2_ao.deploy.kernels.linear import Int8Linear
from qsam2_ao.deploy.kernels.norm import Norm
from qsam2_ao.deploy.kernels.passes import lower_part
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError
from qsam2_ao.native import why_no_kernels
from qsam2_ao.stage import stage_of

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device whose kernels run here."""
    chosen = torch.device(request.param)
    if (reason := why_no_kernels(chosen)) is not None:
        pytest.skip(reason)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_images_and_videos(packed_file: Path, autocast: bool, batch: int, device: torch.device) -> None:
    packed = load_qsam2(packed_file, device=device)
    lowered = load_qsam2(packed_file, device=device, target="int8")
    x = images(batch, 96).to(device)
    exact = run_both(packed, x)
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        theirs, ours = run_both(packed, x), run_both(lowered, x)
    assert len(ours) == len(exact)
    for i, (mine, other, expected) in enumerate(zip(ours, theirs, exact, strict=True)):
        assert mine.shape == expected.shape
        assert mine.is_floating_point()
        if not autocast:
            assert mine.dtype == expected.dtype, f"output {i} in the caller's dtype"
        # As good as the packed model in bfloat16, up to codes that fall on the other side of a step.
        assert error(mine, expected) < max(0.05, 1.5 * error(other, expected)), f"output {i}"


@needs_kernels
def test_the_graph_has_nothing_left_to_fold(packed_file: Path) -> None:
    model = load_qsam2(packed_file, target="int8")
    encoder = model.image_encoder
    kinds = [type(m) for m in encoder.modules()]
    assert PackedIntxTensor not in {type(p) for p in encoder.parameters()}
    assert nn.LayerNorm not in kinds
    assert nn.GELU not in kinds
    assert sum(kind is WindowAttention for kind in kinds) == sum("attn.qkv" in p.layer for p in stage_of(model).layers)
    assert "window_partition" not in encoder.code
    assert "scaled_dot_product" not in encoder.code
    first = [m for m in encoder.modules() if isinstance(m, Int8Linear) and m.activation == "gelu"]
    assert first
    assert all(layer.grid is not None for layer in first), "GELU and rounding are part of the layer"
    assert all(m.grid is not None for m in encoder.modules() if isinstance(m, WindowAttention))
    # Rounding on its own remains at the image and at the neck only.
    assert sum(isinstance(m, QuantizeCodes) for m in encoder.modules()) <= 6
    assert any(isinstance(m, Norm) and m.grid is not None for m in encoder.modules())


@needs_kernels
def test_a_part_is_lowered_in_place_or_left_as_it_is(packed_file: Path) -> None:
    part = load_qsam2(packed_file).memory_encoder
    code, modules = part.code, dict(part.named_modules())
    other, reasons = lower_part(part)
    assert (part.code, dict(part.named_modules())) == (code, modules)
    same, again = lower_part(part, in_place=True)
    assert same is part
    assert (same.code, again) == (other.code, reasons)
    own, others = (
        [type(m) for m in list(model.modules())[1:]] for model in (same, other)
    )  # each graph is a class of its own
    assert own == others


@needs_kernels
def test_the_report_says_what_stayed_packed(packed_file: Path) -> None:
    model = load_qsam2(packed_file, target="int8")
    rows = {row.name: row for row in coverage_report(model).layers if row.weight_bits < 32}
    assert {row.target for row in rows.values()} == {"int8", "packed"}
    for row in rows.values():
        assert (row.target == "packed") == ("dwconv" in row.name), row
        assert bool(row.reason) == (row.target == "packed")


@needs_kernels
def test_a_lowered_model_is_not_saved_and_not_lowered_again(packed_file: Path, tmp_path: Path) -> None:
    model = load_qsam2(packed_file, target="int8")
    with pytest.raises(CheckpointError, match='target="packed"'):
        save_qsam2(model, tmp_path / "again.safetensors")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UnsupportedLayerError, match="not packed codes"):
        targets.lower_to(model, "int8")


@torch.inference_mode()
def test_a_loaded_model_is_lowered_as_on_loading(packed_file: Path) -> None:
    x = torch.randn(1, 3, 96, 96)
    loaded, lowered = load_qsam2(packed_file, target="dequantized"), load_qsam2(packed_file)
    targets.lower_to(lowered, "dequantized")
    assert torch.equal(lowered.image_encoder(x)["vision_features"], loaded.image_encoder(x)["vision_features"])


def test_without_kernels_auto_is_another_and_int8_an_error(packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "why_no_kernels", lambda device: "The kernels are elsewhere.")
    monkeypatch.setattr(choice, "why_unfit_for_kernels", lambda device: None)
    with pytest.warns(UserWarning, match=r"slower: The kernels are elsewhere\."):
        model = load_qsam2(packed_file, target="auto")
    regions = {record.name: record.region for record in stage_of(model).layers}
    taken = {(regions[name], target) for name, (target, _) in stage_of(model).targets.items()}
    (other,) = {target for region, target in taken if region != "mask_decoder"}
    assert other in ("onednn", "dequantized")  # whichever is faster here, and for each part of the decoder apart
    assert {target for region, target in taken if region == "mask_decoder"} <= {other, "dequantized"}
    with pytest.raises(UnsupportedLayerError, match=r"kernels are elsewhere\. target=\"auto\""):
        load_qsam2(packed_file, target="int8")


@pytest.mark.slow
@needs_kernels
@torch.inference_mode()
def test_bands_give_what_the_whole_gives(packed_file: Path) -> None:
    """At a size where the first blocks run in several bands, for one image and for two."""
    encoder = load_qsam2(packed_file, target="int8").image_encoder
    bands = [m for m in encoder.modules() if isinstance(m, Bands)]
    assert len(bands) == 1
    for batch in (1, 2):
        x = images(batch, 1024 if batch == 1 else 768)
        banded = encoder(x)["backbone_fpn"]
        bands[0].alignment, kept = 10**6, bands[0].alignment  # no image is divisible: all at once
        whole = encoder(x)["backbone_fpn"]
        bands[0].alignment = kept
        for one, other in zip(banded, whole, strict=True):
            assert torch.equal(one, other)


@torch.inference_mode()
def test_sizes_that_windows_do_not_divide(packed_file: Path, device: torch.device) -> None:
    packed = load_qsam2(packed_file, device=device)
    lowered = load_qsam2(packed_file, device=device, target="int8")
    for size in ((96, 96), (160, 96), (224, 288)):
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
        for mine, expected in zip(
            lowered.image_encoder(x)["backbone_fpn"], packed.image_encoder(x)["backbone_fpn"], strict=True
        ):
            assert error(mine, expected) < 0.1
            assert mine.shape == expected.shape


@torch.inference_mode()
def test_windows_beyond_the_image_where_no_code_stands_for_zero(packed_file: Path, device: torch.device) -> None:
    packed = load_qsam2(packed_file, device=device)
    encoder = packed.image_encoder
    for node in encoder.graph.nodes:
        if str(node.target).endswith("attn_qkv"):
            rounding = encoder.get_submodule(node.args[0].target)
            rounding.zero_point.fill_(-20)
    x = torch.randn(1, 3, 160, 96, generator=torch.Generator().manual_seed(0)).to(device)
    expected = encoder(x)["backbone_fpn"]
    targets.lower_to(packed, "int8")
    for mine, theirs in zip(packed.image_encoder(x)["backbone_fpn"], expected, strict=True):
        assert error(mine, theirs) < 0.1


@needs_kernels
@torch.inference_mode()
def test_threads_may_share_a_model(packed_file: Path) -> None:
    model = load_qsam2(packed_file, target="int8")
    batches = [images(1, size, seed) for seed, size in enumerate((96, 128, 96, 160))]
    expected = [model.image_encoder(x)["backbone_fpn"] for x in batches]
    results: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        with torch.inference_mode():
            for _ in range(5):
                results[i] = model.image_encoder(batches[i])["backbone_fpn"]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i, outputs in enumerate(expected):
        assert all(torch.equal(a, b) for a, b in zip(results[i], outputs, strict=True))


@needs_kernels
@torch.inference_mode()
def test_channels_last_images(packed_file: Path) -> None:
    encoder = load_qsam2(packed_file, target="int8").image_encoder
    x = images(2, 96)
    for one, other in zip(
        encoder(x)["backbone_fpn"], encoder(x.to(memory_format=torch.channels_last))["backbone_fpn"], strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.slow
@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("preset", ["w2a8", "w2a4", "w3a8", "w8a8", "w4a16"])
def test_every_preset(preset: str, tmp_path: Path) -> None:
    from qsam2_ao import build_embedded, convert_qsam2

    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    save_qsam2(convert_qsam2(build_embedded(), preset, [photo], vrc=None), tmp_path / "model.safetensors")
    packed, lowered = (load_qsam2(tmp_path / "model.safetensors", target=target) for target in ("packed", "int8"))
    weight_only = preset.endswith("a16")
    assert ("int8" in {target for target, _ in stage_of(lowered).targets.values()}) != weight_only
    x = images(1, 96)
    with torch.autocast("cpu", torch.bfloat16):
        theirs = run_video(packed, x)
    for mine, other, expected in zip(run_video(lowered, x), theirs, run_video(packed, x), strict=True):
        assert error(mine, expected) < max(0.1, 1.5 * error(other, expected))
