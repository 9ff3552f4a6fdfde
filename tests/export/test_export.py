"""Exported files in their runtimes against the packed model that they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2_runs import images
from torch import Tensor, nn

from qsam2_ao import convert_qsam2, load_embedded, load_qsam2, save_qsam2
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.errors import QSAM2Error, UnsupportedLayerError
from qsam2_ao.export import export_onnx, export_openvino
from qsam2_ao.export.parts import ExportPart, export_parts
from qsam2_ao.export.qdq import for_export
from qsam2_ao.export.runtimes import openvino_core
from qsam2_ao.native import why_no_kernels
from qsam2_ao.stage import stage_of

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

Outputs = list[np.ndarray]
Runner = Callable[[Path, Mapping[str, Tensor]], Outputs]


def in_onnx_runtime(path: Path, inputs: Mapping[str, Tensor]) -> Outputs:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})


def in_openvino(path: Path, inputs: Mapping[str, Tensor]) -> Outputs:
    pytest.importorskip("openvino")
    compiled = openvino_core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled.create_infer_request().infer({name: value.numpy() for name, value in inputs.items()})
    return [results[i] for i in range(len(compiled.outputs))]


@pytest.fixture(scope="module", params=["w4a8", "w2a4"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SAM2Base:
    """The embedded model with its trained weights: scores without ties, ranges of real inputs."""
    photos = list(generate_sequence("train", 0, num_frames=4).frames)
    path = tmp_path_factory.mktemp("export") / f"{request.param}.safetensors"
    save_qsam2(convert_qsam2(load_embedded(), request.param, photos, vrc=None, progress=False), path)
    return load_qsam2(path)


@pytest.fixture(scope="module")
def parts(trained: SAM2Base) -> dict[str, ExportPart]:
    return {part.name: part for part in export_parts(for_export(trained))}


def torch_run(part: ExportPart, inputs: Mapping[str, Tensor]) -> Outputs:
    with torch.no_grad():
        out = part.module(*inputs.values())
    return [tensor.numpy() for tensor in (out if isinstance(out, tuple) else (out,))]


def check(actual: Outputs, expected: Outputs, tolerance: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.shape == other.shape
        error = np.sqrt(np.square(one - other).mean() / max(np.square(other).mean(), 1e-12))
        assert error < tolerance


@pytest.mark.slow
@torch.no_grad()
def test_the_parts_compute_what_the_packed_model_computes(trained: SAM2Base, parts: dict[str, ExportPart]) -> None:
    x = images(1, trained.image_size)
    fine, middle, coarse = trained.forward_image(x)["backbone_fpn"]
    first = coarse + trained.no_mem_embed.reshape(1, -1, 1, 1)
    for ours, theirs in zip(parts["image_encoder"].module(x), (coarse, first, middle, fine), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)

    inputs = parts["mask_decoder"].inputs
    masks, scores, mask, score, pointers, object_score = parts["mask_decoder"].module(*inputs.values())
    clicks = {name: inputs[name] for name in ("point_coords", "point_labels")}
    for several in (True, False):
        low, _, ious, best, _, pointer, visible = trained._forward_sam_heads(
            inputs["features"], clicks, high_res_features=[inputs["fine"], inputs["middle"]], multimask_output=several
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
def onnx_files(trained: SAM2Base, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return export_onnx(trained, tmp_path_factory.mktemp("onnx"), progress=False)


@pytest.mark.slow
def test_files_run_in_onnx_runtime(trained: SAM2Base, parts: dict[str, ExportPart], onnx_files: list[Path]) -> None:
    check_files(onnx_files, in_onnx_runtime, trained, parts)


@pytest.mark.slow
def test_files_run_in_openvino(trained: SAM2Base, parts: dict[str, ExportPart], tmp_path: Path) -> None:
    check_files(export_openvino(trained, tmp_path / "out", progress=False), in_openvino, trained, parts)


def check_files(files: list[Path], run: Runner, trained: SAM2Base, parts: dict[str, ExportPart]) -> None:
    # Rounded differently, some inputs of a later layer fall on the other side of a step, which is wide with 4 bits.
    tolerance = 0.3 if any(record.activation_bits == 4 for record in stage_of(trained).layers) else 0.1
    assert [file.stem for file in files] == list(parts)
    for file, part in zip(files, parts.values(), strict=True):
        check(run(file, part.inputs), torch_run(part, part.inputs), tolerance)
    attention, decoder = parts["memory_attention"], parts["mask_decoder"]
    for frames, pointers in ((1, 1), (7, 16)):
        generator = torch.Generator().manual_seed(frames)
        inputs: dict[str, Any] = dict(attention.inputs)
        inputs["memory"] = torch.randn(frames, *inputs["memory"].shape[1:], generator=generator)
        inputs["age"] = torch.arange(frames)
        inputs["pointers"] = torch.randn(pointers, trained.hidden_dim, generator=generator)
        inputs["pointer_age"] = torch.arange(pointers) / 15
        check(run(files[2], inputs), torch_run(attention, inputs), tolerance)
    inputs = dict(decoder.inputs)
    inputs["point_coords"] = torch.tensor([[[10.0, 20.0], [70.0, 80.0], [40.0, 40.0]]])
    inputs["point_labels"] = torch.tensor([[2, 3, 1]], dtype=torch.int32)
    check(run(files[1], inputs), torch_run(decoder, inputs), tolerance)


@pytest.mark.slow
def test_onnx_holds_quantized_layers_and_small_weights(trained: SAM2Base, onnx_files: list[Path]) -> None:
    records = stage_of(trained).layers
    bits = min(record.bits for record in records)
    proto = onnx.load(str(onnx_files[0]))
    onnx.checker.check_model(proto)
    kinds = [node.op_type for node in proto.graph.node]
    # SAM2's image path applies two convolutions of the decoder to the features as well.
    paths = ("image_encoder", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1")
    quantized = {(record.part, record.activation) for record in records if record.part in paths and record.activation}
    assert kinds.count("QuantizeLinear") == len(quantized)
    types = [tensor.data_type for tensor in proto.graph.initializer]
    layers = sum(record.part == "image_encoder" for record in records)
    assert types.count(onnx.TensorProto.INT4) + types.count(onnx.TensorProto.INT8) >= layers
    if bits == 2:
        assert types.count(onnx.TensorProto.INT4) > layers / 2


def test_what_cannot_be_exported_says_why(trained: SAM2Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(QSAM2Error, match=r"needs the package onnx: pip install .*\[export\]"):
        export_onnx(trained, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
def test_a_lowered_model_is_not_exported(packed_file: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match='is lowered: load the file with target="packed"'):
        for_export(load_qsam2(packed_file, target="int8"))


@pytest.mark.slow
def test_the_model_is_left_as_it_was(trained: SAM2Base) -> None:
    before = [(name, type(module)) for name, module in trained.named_modules()]
    assert isinstance(for_export(trained), nn.Module)
    assert [(name, type(module)) for name, module in trained.named_modules()] == before
