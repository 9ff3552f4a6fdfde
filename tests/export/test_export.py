"""Exported files in their runtimes against the packed model that they come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_parts import check_files, check_quantized_layers, in_onnx_runtime, in_openvino
from sam2.modeling.sam2_base import SAM2Base
from sam2_runs import images
from torch import nn

from qsam2_ao import load_qsam2, use_compact_memories
from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.errors import CheckpointError, QSAM2Error, UnsupportedLayerError
from qsam2_ao.export import export_aoti, export_onnx
from qsam2_ao.export.openvino import openvino_from_onnx
from qsam2_ao.export.parts import ExportPart, export_parts
from qsam2_ao.export.qdq import for_export, saturating_layers
from qsam2_ao.export.settings import ExportSettings
from qsam2_ao.native import why_no_kernels
from qsam2_ao.stage import set_stage, stage_of

ModelProto = pytest.importorskip("onnx").ModelProto
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def four_bits(trained_file: Path) -> SAM2Base:
    return load_qsam2(trained_file)


@pytest.mark.parametrize("setting", ["max_cond_frames_in_attn", "non_overlap_masks", "non_overlap_masks_for_mem_enc"])
def test_settings_that_exported_files_do_not_follow_are_named(packed_file: Path, setting: str) -> None:
    model = load_qsam2(packed_file)
    setattr(model, setting, 2 if setting.startswith("max") else True)
    with pytest.raises(UnsupportedLayerError, match=f"its {setting} is"):
        export_parts(model)


def test_chosen_frames_are_refused(packed_file: Path, tmp_path: Path) -> None:
    model = use_compact_memories(load_qsam2(packed_file), frames=2)
    with pytest.raises(UnsupportedLayerError, match="memory attention chooses its frames"):
        export_aoti(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("zero_point", [127.5, -3.0, 300.0])
def test_zero_points_that_the_formats_do_not_have(packed_file: Path, zero_point: float) -> None:
    model = load_qsam2(packed_file)
    name, quantizer = next((n, m) for n, m in model.named_modules() if isinstance(m, ActivationQuantizer))
    quantizer.zero_point.fill_(zero_point)
    with pytest.raises(UnsupportedLayerError, match=f"{name} cannot be exported: its zero point is {zero_point:g}"):
        for_export(model)


def test_a_model_in_another_dtype_is_refused(packed_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(QSAM2Error, match="bfloat16"):
        export_onnx(load_qsam2(packed_file).bfloat16(), tmp_path)
    with pytest.raises(QSAM2Error, match="bfloat16"):
        export_aoti(load_qsam2(packed_file).bfloat16(), tmp_path)


@pytest.fixture(scope="module")
def two_bits(trained: Callable[..., Path]) -> SAM2Base:
    """With first and last layers of 7 bits, which runtimes compute alike on all CPUs."""
    return load_qsam2(trained("w2a4", first_last_bits=7))


def parts_of(model: SAM2Base) -> dict[str, ExportPart]:
    return {part.name: part for part in export_parts(for_export(model))}


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["four_bits", "two_bits"])
@torch.no_grad()
def test_the_parts_compute_what_the_packed_model_computes(request: pytest.FixtureRequest, bits: str) -> None:
    trained: SAM2Base = request.getfixturevalue(bits)
    parts = parts_of(trained)
    x = images(1, trained.image_size)
    fine, middle, coarse = trained.forward_image(x)["backbone_fpn"]
    first = coarse + trained.no_mem_embed.reshape(1, -1, 1, 1)
    for ours, theirs in zip(parts["image_encoder"].module(x), (coarse, first, middle, fine), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)

    inputs = parts["mask_decoder"].inputs
    clicks = {name: inputs[name] for name in ("point_coords", "point_labels")}
    for given, several in itertools.product((None, inputs["mask_input"]), (True, False)):
        has_mask = torch.tensor([float(given is not None)])
        masks, scores, mask, score, pointers, object_score = parts["mask_decoder"].module(
            *{**inputs, "has_mask": has_mask}.values()
        )
        low, _, ious, best, _, pointer, visible = trained._forward_sam_heads(
            inputs["features"],
            clicks,
            given,
            high_res_features=[inputs["fine"], inputs["middle"]],
            multimask_output=several,
        )
        choice = int(scores.argmax())
        ours = (masks, scores, masks[:, choice][:, None], pointers[:, 1 + choice])
        ours = ours if several else (mask, score, mask, pointers[:, 0])
        for one, other in zip(ours, (low, ious, best, pointer), strict=True):
            if visible <= 0 and one.ndim == 4:
                one = torch.full_like(one, -1024)
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(object_score, visible)

    inputs = parts["memory_attention"].inputs
    kept, age = inputs["memory"], inputs["age"].tolist()
    position = trained.memory_encoder(inputs["features"], torch.zeros(1, 1, *x.shape[2:]))["vision_pos_enc"]
    outputs = [
        {"maskmem_features": m[None], "maskmem_pos_enc": position, "obj_ptr": p[None]}
        for m, p in zip(kept, inputs["pointers"], strict=False)
    ]
    # At frame 2 of 16: frame 0 was prompted, 1 and 2 frames ago stand for themselves.
    order = dict(zip(age, range(len(age)), strict=True))
    cond, others = {0: outputs[order[0]]}, {2 - ago: outputs[order[ago]] for ago in age if ago and ago < 2}
    seen = [0] + [2 - frame for frame in others]
    ours = parts["memory_attention"].module(
        inputs["features"],
        kept[[order[ago] for ago in seen]],
        torch.tensor(seen),
        inputs["pointers"][[order[ago] for ago in seen]],
        torch.tensor([2.0, *seen[1:]]) / 15,
    )
    encoding = trained.forward_image(x)["vision_pos_enc"][-1]
    theirs = trained._prepare_memory_conditioned_features(
        frame_idx=2,
        is_init_cond_frame=False,
        current_vision_feats=[inputs["features"].flatten(2).permute(2, 0, 1)],
        current_vision_pos_embeds=[encoding.flatten(2).permute(2, 0, 1)],
        feat_sizes=[tuple(encoding.shape[-2:])],
        output_dict={"cond_frame_outputs": cond, "non_cond_frame_outputs": others},
        num_frames=16,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)

    inputs = parts["memory_encoder"].inputs
    for visible in (-1.0, 1.0):
        expected, _ = trained._encode_new_memory(
            [inputs["features"].flatten(2).permute(2, 0, 1)],
            [tuple(inputs["features"].shape[-2:])],
            inputs["mask"],
            torch.full((1, 1), visible),
            False,
        )
        ours = parts["memory_encoder"].module(inputs["features"], inputs["mask"], torch.full((1, 1), visible))
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-2)


@pytest.fixture(scope="module")
def onnx_files(two_bits: SAM2Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of 2 bits; the files of 4 bits are those of ``test_runner.py``."""
    return export_onnx(two_bits, tmp_path_factory.mktemp("onnx"), progress=False)


@pytest.mark.slow
def test_files_run_in_onnx_runtime(two_bits: SAM2Base, onnx_files: list[Path]) -> None:
    check_files(onnx_files, in_onnx_runtime, two_bits, parts_of(two_bits))


@pytest.mark.slow
def test_files_run_in_openvino(two_bits: SAM2Base, onnx_files: list[Path], tmp_path: Path) -> None:
    check_files(openvino_from_onnx(onnx_files, tmp_path / "out"), in_openvino, two_bits, parts_of(two_bits))


@pytest.mark.slow
def test_onnx_holds_quantized_layers_and_small_weights(onnx_files: list[Path], two_bits: SAM2Base) -> None:
    check_quantized_layers(onnx_files[0], two_bits)
    for path in onnx_files:
        assert str(Path(torch.__file__).parents[1]).encode() not in path.read_bytes()  # stack traces name places here


def test_what_cannot_be_exported_says_why(packed_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    model = load_qsam2(packed_file)
    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(QSAM2Error, match=r"needs the package onnx: pip install .*\[export\]"):
        export_onnx(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("error:.* saturate")  # it comes before the work
def test_weights_that_may_saturate_are_named(packed_file: Path, tmp_path: Path) -> None:
    model = load_qsam2(packed_file)
    wide = saturating_layers(model)
    assert wide == [record.name for record in stage_of(model).layers if record.bits == 8]
    with pytest.raises(UserWarning, match=rf"{len(wide)} layers .{wide[0]}, .* saturate"):
        export_onnx(model, tmp_path, progress=False)
    layers = stage_of(model).layers
    for bits, named in ((6, 0), (7, len(wide))):  # 7 bits times 8, on a mid-rise grid, are up to 127 times 255
        narrow = tuple(replace(record, bits=min(record.bits, bits)) for record in layers)
        set_stage(model, replace(stage_of(model), layers=narrow))
        assert len(saturating_layers(model)) == named


def test_seven_bits_do_not_saturate(two_bits: SAM2Base) -> None:
    records = stage_of(two_bits).layers
    assert {(record.bits, record.activation_bits) for record in records} == {(2, 4), (7, 7)}
    assert not saturating_layers(two_bits)
    exported = for_export(two_bits)
    for record in records:
        layer: Any = exported.get_submodule(f"{record.part}.{record.layer}")
        inputs: Any = exported.get_submodule(f"{record.part}.{record.activation}")
        largest = (inputs.high - inputs.low) / inputs.scale  # of its codes
        assert 2 * layer.values.int().abs().max() * largest < 2**15


@pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
def test_a_lowered_model_is_not_exported(packed_file: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match='is lowered: load the file with target="packed"'):
        for_export(load_qsam2(packed_file, target="int8"))


@pytest.mark.slow
def test_the_model_is_left_as_it_was(four_bits: SAM2Base) -> None:
    before = [(name, type(module)) for name, module in four_bits.named_modules()]
    assert isinstance(for_export(four_bits), nn.Module)
    assert [(name, type(module)) for name, module in four_bits.named_modules()] == before


def test_an_interrupted_export_is_none(packed_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first files are there, and the others are those of another model."""
    model = load_qsam2(packed_file)
    ExportSettings.of(model, "onnx").save(tmp_path)

    def convert(part: ExportPart) -> Any:
        if (tmp_path / "image_encoder.onnx").exists():
            raise KeyboardInterrupt
        return ModelProto()

    monkeypatch.setattr("qsam2_ao.export.to_onnx._convert", convert)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="no folder that qsam2 export wrote"):
        ExportSettings.load(tmp_path)
