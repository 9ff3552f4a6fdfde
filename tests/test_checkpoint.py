from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from sam2_runs import assert_identical, images, run_both, run_image, run_video
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from training.model.sam2 import SAM2Train

from qsam2_ao import convert_qsam2, load_qsam2, prepare_qsam2, save_qsam2
from qsam2_ao.checkpoint import read_header
from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.stage import stage_of


def photos() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8))


@pytest.fixture(scope="module")
def quantized() -> SAM2Base:
    return convert_qsam2(build_embedded(SAM2VideoPredictor), "w2a8", photos(), vrc=None, progress=False)


@pytest.fixture(scope="module")
def saved(quantized: SAM2Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "w2a8.safetensors"
    save_qsam2(quantized, path)
    return path


def edited(saved: Path, target: Path, edit: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> Path:
    """A copy of the file with its tensors and header changed."""
    with safe_open(saved, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    metadata.pop("crc32", None)
    edit(tensors, metadata)
    save_file(tensors, target, metadata)
    return target


@pytest.mark.slow
@torch.no_grad()
def test_a_loaded_model_is_the_same_to_the_bit(quantized: SAM2Base, saved: Path) -> None:
    loaded = load_qsam2(saved)
    assert type(loaded) is SAM2VideoPredictor
    assert not loaded.training
    batch = images(2, 96)
    expected = run_both(quantized, batch)
    for model in (loaded, pickle.loads(pickle.dumps(loaded))):
        assert_identical(run_both(model, batch), expected)


@pytest.mark.slow
@torch.no_grad()
def test_threads_load_at_once_and_leave_the_garbage_collector_as_it_was(saved: Path, tmp_path: Path) -> None:
    assert gc.isenabled()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load_qsam2, [saved] * 4))
    assert gc.isenabled()
    assert_identical(run_image(loaded[0], images(1, 96)), run_image(loaded[3], images(1, 96)))
    with pytest.raises(CheckpointError, match="missing"):
        load_qsam2(edited(saved, tmp_path / "less", lambda tensors, _: tensors.popitem()))
    assert gc.isenabled()
    gc.disable()
    try:
        load_qsam2(saved)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_file_is_as_small_as_its_bits(quantized: SAM2Base, saved: Path) -> None:
    weights = sum(torch.Size(record.shape).numel() * record.bits for record in stage_of(quantized).layers) / 8
    scales = sum(4 * record.shape[0] + 8 for record in stage_of(quantized).layers)
    names = {f"{record.name}.weight" for record in stage_of(quantized).layers}
    left = sum(4 * value.numel() for name, value in quantized.state_dict().items() if name not in names)
    header = 8 + int.from_bytes(saved.read_bytes()[:8], "little")
    assert saved.stat().st_size - header <= weights + scales + left + 8 * len(names)  # codes come in eights


def test_saving_again_gives_the_same_bytes(quantized: SAM2Base, saved: Path, tmp_path: Path) -> None:
    for model in (quantized, copy.deepcopy(quantized), load_qsam2(saved)):
        save_qsam2(model, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_writes_the_same_bytes(saved: Path, tmp_path: Path, seed: str) -> None:
    script = "import sys, qsam2_ao; qsam2_ao.save_qsam2(qsam2_ao.load_qsam2(sys.argv[1]), sys.argv[2])"
    path = tmp_path / "again.safetensors"
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", script, str(saved), str(path)], env=environment, check=True)
    assert path.read_bytes() == saved.read_bytes()


def test_inside_inference_mode_it_loads_and_saves(quantized: SAM2Base, saved: Path, tmp_path: Path) -> None:
    with torch.inference_mode():
        loaded = load_qsam2(saved)
        for model in (quantized, loaded, loaded.to("cpu")):
            save_qsam2(model, tmp_path / "again.safetensors")
            assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()
    assert not any(value.is_inference() for value in loaded.state_dict().values())
    loaded.image_encoder(images(1, 96).requires_grad_())["vision_features"].sum().backward()


@torch.no_grad()
def test_a_file_of_version_1_loads(quantized: SAM2Base, saved: Path, tmp_path: Path) -> None:
    """There, a part that is one lone layer was a graph with the layer inside."""

    def to_version_1(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        metadata["format_version"] = "1"
        del metadata["dtypes"]
        lone = [plan["part"] for plan in json.loads(metadata["plan"]) if plan["layer"] == "layer"]
        assert lone == ["sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1", "obj_ptr_tpos_proj"]
        for part in lone:
            for name in [n for n in tensors if n.startswith((f"{part}.weight", f"{part}.bias"))]:
                tensors[f"{part}.layer.{name.removeprefix(f'{part}.')}"] = tensors.pop(name)

    old = edited(saved, tmp_path / "old.safetensors", to_version_1)
    loaded = load_qsam2(old)
    assert list(loaded.state_dict()) == list(quantized.state_dict())
    assert_identical(run_both(loaded, images(1, 96)), run_both(quantized, images(1, 96)))
    save_qsam2(loaded, tmp_path / "new.safetensors")
    assert (tmp_path / "new.safetensors").read_bytes() == saved.read_bytes()
    with pytest.raises(CheckpointError, match=r"'obj_ptr_tpos_proj\.bias' is missing"):
        load_qsam2(edited(old, tmp_path / "less", lambda tensors, _: tensors.pop("obj_ptr_tpos_proj.layer.bias")))


@torch.no_grad()
def test_a_model_in_bfloat16_keeps_its_dtypes(quantized: SAM2Base, tmp_path: Path) -> None:
    model = copy.deepcopy(quantized)
    model.memory_encoder.bfloat16()
    save_qsam2(model, tmp_path / "mixed.safetensors")
    loaded = load_qsam2(tmp_path / "mixed.safetensors")
    dtypes = {name: value.dtype for name, value in model.state_dict().items()}
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == dtypes
    assert dtypes["memory_encoder.out_proj.weight"] == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert_identical(run_video(loaded, images(1, 96)), run_video(model, images(1, 96)))


def test_another_class_can_be_asked_for(saved: Path) -> None:
    assert type(load_qsam2(saved, model_class=SAM2Base)) is SAM2Base
    assert type(load_qsam2(saved, model_class=SAM2Train)) is SAM2Train


def test_the_header_tells_what_is_inside(quantized: SAM2Base, saved: Path) -> None:
    header = read_header(saved)
    assert header.plan == stage_of(quantized).layers
    assert header.config["_target_"].endswith("SAM2VideoPredictor")
    assert header.info["qconfig"] == "w2a8"
    # The package's: torch calls itself by its build, "2.13.0+cu130", which its package need not.
    assert header.info["versions"]["torch"] == version("torch")


class _FloatShapes(TorchDispatchMode):
    """Shapes of every float tensor with memory that an operation fills."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            filled = not any(name in str(func) for name in ("empty", "detach"))
            if filled and type(tensor) is Tensor and tensor.is_floating_point() and tensor.device.type != "meta":
                self.shapes.add(tuple(tensor.shape))
        return out


def test_no_float_weight_of_a_quantized_layer_is_made(quantized: SAM2Base, saved: Path) -> None:
    with _FloatShapes() as seen:
        load_qsam2(saved)
    # Float tensors of the same shape that the model has anyway, such as scales and embeddings.
    others = {tuple(value.shape) for value in quantized.state_dict().values() if type(value) is Tensor}
    scales = {(1,), *((record.shape[0],) for record in stage_of(quantized).layers)}
    weights = {record.shape for record in stage_of(quantized).layers} - others - scales
    assert len(weights) > 20
    assert seen.shapes  # the mode did watch
    assert not seen.shapes & weights


@pytest.mark.slow
@pytest.mark.parametrize(("capability", "tolerance"), [("default", 1e-3), ("avx2", 1e-3)])
def test_other_processors_agree(saved: Path, tmp_path: Path, capability: str, tolerance: float) -> None:
    """Same codes to the bit; outputs within a thousandth of their range (kernels add in another order)."""
    script = (
        "import sys, torch, qsam2_ao; sys.path.insert(0, sys.argv[1]); from sam2_runs import images\n"
        "model = qsam2_ao.load_qsam2(sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    out = model.image_encoder(images(1, 96))['backbone_fpn']\n"
        "codes = {n: p.unpack() for n, p in model.named_parameters() if hasattr(p, 'unpack')}\n"
        "torch.save({'out': out, 'codes': codes}, sys.argv[3])\n"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    here = Path(__file__).parent
    subprocess.run(
        [sys.executable, "-c", script, str(here), str(saved), str(tmp_path / "out.pt")], env=environment, check=True
    )
    theirs = torch.load(tmp_path / "out.pt", weights_only=True)
    ours = load_qsam2(saved)
    for name, parameter in ours.named_parameters():
        if name in theirs["codes"]:
            assert torch.equal(parameter.unpack(), theirs["codes"][name])
    with torch.no_grad():
        for a, b in zip(ours.image_encoder(images(1, 96))["backbone_fpn"], theirs["out"], strict=True):
            assert float((a - b).square().mean() / b.square().mean()) < tolerance


def test_only_deployed_models_are_saved(tmp_path: Path) -> None:
    model = build_embedded(SAM2VideoPredictor)
    for each in (model, prepare_qsam2(model, {"memory_encoder": "w4a16"})):
        with pytest.raises(CheckpointError, match="call convert_qsam2 first"):
            save_qsam2(each, tmp_path / "float.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["", "image_encoder"])
def test_what_sam2_has_not_is_named_before_it_is_saved(quantized: SAM2Base, tmp_path: Path, where: str) -> None:
    model = copy.deepcopy(quantized)
    model.get_submodule(where).my_head = torch.nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match=r"my_head\.bias is no part of SAM2 \(2 such tensors\)"):
        save_qsam2(model, tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())


def _thaw(model: Any) -> None:
    layer = model.memory_encoder.pix_feat_proj
    layer.weight = torch.nn.Parameter(layer.weight.dequantize())


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "other memory": (lambda m: setattr(m, "num_maskmem", 3), "maskmem_tpos_enc' has shape"),
    "a layer in float again": (_thaw, r"pix_feat_proj\.weight\.codes' is missing"),
    "no head": (
        lambda m: setattr(m.sam_mask_decoder, "iou_prediction_head", torch.nn.Identity()),
        "input quantizers disagree on",
    ),
    "no pointer": (lambda m: setattr(m, "no_obj_ptr", None), "no_obj_ptr' is missing"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_could_not_be_loaded_is_not_saved(quantized: SAM2Base, saved: Path, tmp_path: Path, change: str) -> None:
    model, path = copy.deepcopy(quantized), tmp_path / "kept.safetensors"
    path.write_bytes(saved.read_bytes())
    CHANGES[change][0](model)
    with pytest.raises(CheckpointError, match=f"cannot be saved, it was changed since .*{CHANGES[change][1]}"):
        save_qsam2(model, path)
    assert path.read_bytes() == saved.read_bytes()


def test_layers_that_share_a_tensor_are_saved_each_for_itself(quantized: SAM2Base, tmp_path: Path) -> None:
    model: Any = copy.deepcopy(quantized)
    one, other = (layer.norm1 for layer in model.memory_attention.layers[:2])
    other.weight = one.weight
    save_qsam2(model, tmp_path / "shared.safetensors")
    loaded: Any = load_qsam2(tmp_path / "shared.safetensors")
    for layer in loaded.memory_attention.layers[:2]:
        assert torch.equal(layer.norm1.weight, one.weight)


def test_a_link_stays_one_and_a_file_keeps_its_mode(quantized: SAM2Base, saved: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "model.safetensors", tmp_path / "link.safetensors"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    save_qsam2(quantized, link)
    assert link.is_symlink()
    assert path.read_bytes() == saved.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_place_that_cannot_be_written_loses_nothing(quantized: SAM2Base, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QSAM2Error, match="cannot write"):
        save_qsam2(quantized, tmp_path / "file" / "model.safetensors")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors: no such file"):
        load_qsam2(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(saved: Path, tmp_path: Path, share: float) -> None:
    data = saved.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors is no complete safetensors file"):
        load_qsam2(tmp_path / "cut.safetensors")


def test_an_official_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "sam2.pt")
    with pytest.raises(CheckpointError, match="quantize that first"):
        load_qsam2(tmp_path / "sam2.pt")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not one that save_qsam2 wrote"):
        load_qsam2(tmp_path / "foreign.safetensors")


LAYER = "image_encoder.trunk.blocks.0.attn.qkv.weight"


def _rename_target(metadata: dict[str, str], target: str) -> None:
    config = json.loads(metadata["config"])
    config["_target_"] = target
    metadata["config"] = json.dumps(config)


def _edit_plan(metadata: dict[str, str], **values: Any) -> None:
    plan = json.loads(metadata["plan"])
    plan[1].update(values)
    metadata["plan"] = json.dumps(plan)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t, m: m.update(format_version="99"), "format version '99'.*upgrade"),
        (lambda t, m: m.update(plan="not json"), "header is damaged"),
        (lambda t, m: m.pop("config"), "header is damaged.*config"),
        (lambda t, m: t.pop(f"{LAYER}.codes"), rf"tensor '{LAYER}\.codes' is missing"),
        (lambda t, m: t.pop("no_mem_embed"), "tensor 'no_mem_embed' is missing"),
        (lambda t, m: t.update(stowaway=torch.zeros(1)), "unknown tensor 'stowaway'"),
        (lambda t, m: t.update(no_mem_embed=torch.zeros(1, 1, 3)), r"'no_mem_embed' has shape \(1, 1, 3\)"),
        (lambda t, m: t.update({f"{LAYER}.codes": torch.zeros(3, dtype=torch.uint8)}), r"codes' has shape \(3,\)"),
        (lambda t, m: t[f"{LAYER}.scale"].fill_(float("nan")), "blocks.0.attn.qkv: .*NaN"),
        (lambda t, m: t["image_encoder.input_quantizer_0.scale"].fill_(-1), "input_quantizer_0: .*positive"),
        (lambda t, m: _rename_target(m, "os.system"), "os.system"),
        (lambda t, m: _edit_plan(m, bits=12), "cannot be used"),
        (lambda t, m: _edit_plan(m, bits=3), r"codes' has shape"),
        (lambda t, m: _edit_plan(m, part="image_decoder"), "'image_decoder' that its model does not have"),
        (lambda t, m: _edit_plan(m, layer="trunk.nothing"), "trunk.nothing"),
        (lambda t, m: _edit_plan(m, surprise=1), "'surprise'"),
        (lambda t, m: _edit_plan(m, part=""), "that its model does not have"),
        (lambda t, m: _edit_plan(m, group_size=4), "no such layer as 'image_encoder.*group_size"),
        (lambda t, m: t.update(no_mem_embed=t["no_mem_embed"].int()), "'no_mem_embed' is torch.int32"),
        (lambda t, m: _edit_plan(m, part={}), "cannot be used"),
        (lambda t, m: _edit_plan(m, activation=[1]), "cannot be used"),
        (lambda t, m: m.update(quantizers="{}"), "disagree on"),
        (lambda t, m: m.update(quantizers='{"a": [0, Infinity]}'), "header is damaged.*infinity"),
        (lambda t, m: m.update(info="[1]"), "header is damaged"),
        (lambda t, m: m.update(config="[" * 100_000), "header is damaged"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(
    saved: Path, tmp_path: Path, edit: Callable[[dict[str, Tensor], dict[str, str]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_qsam2(edited(saved, tmp_path / "edited.safetensors", edit))


@pytest.mark.slow
def test_a_layout_of_this_machine_is_never_saved(tmp_path: Path) -> None:
    qconfig = {"memory_attention": "w4a16"}
    model = convert_qsam2(build_embedded(SAM2VideoPredictor), qconfig, progress=False)
    save_qsam2(model, tmp_path / "w4.safetensors")
    lowered = load_qsam2(tmp_path / "w4.safetensors", target="int4")
    taken = {name for name, (target, _) in stage_of(lowered).targets.items() if target == "int4"}
    assert taken
    with torch.no_grad():
        for a, b in zip(run_video(lowered, images(1, 96)), run_video(model, images(1, 96)), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4 * max(1.0, float(b.abs().max())))
    with pytest.raises(QSAM2Error):
        save_qsam2(lowered, tmp_path / "lowered.safetensors")
    assert not (tmp_path / "lowered.safetensors").exists()
