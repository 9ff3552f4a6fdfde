"""Files of weights in every form that people have them, and what is said about those that hold none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qsam2_ao.errors import CheckpointError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.models.weights import check_settings, holds_float_weights, image_size_of, read_checkpoint


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build_embedded(seed=7)


def trainer(state: dict[str, Tensor]) -> dict[str, Any]:
    """What SAM2's trainer writes."""
    return {
        "model": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "epoch": 3,
        "loss": {},
        "steps": {"train": 10, "val": 0},
        "time_elapsed": 1.5,
        "best_meter_values": {},
    }


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "Meta's": lambda state: {"model": state},
    "bare": lambda state: state,
    "DataParallel": lambda state: {"model": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "both": lambda state: {"state_dict": prefixed(state, "module._orig_mod.")},
    "a compiled part": lambda state: {
        name.replace("image_encoder.", "image_encoder._orig_mod."): value for name, value in state.items()
    },
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "pytorch-lightning_version": "2"},
    "EMA alone": lambda state: {"ema": {"module": state}, "step": 5},
    "model_ema": lambda state: {"model_ema": prefixed(state, "module."), "epoch": 1},
    "trainer": trainer,
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_state_dicts(model: nn.Module, tmp_path: Path, form: str) -> None:
    state = model.state_dict()
    torch.save(FORMS[form](state), tmp_path / "some.pt")
    assert holds_float_weights(tmp_path / "some.pt")
    assert_equal(read_checkpoint(tmp_path / "some.pt"), state)


def assert_equal(read: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_wrapped_models_as_torch_saves_them(model: nn.Module, tmp_path: Path) -> None:
    for wrapped in (nn.DataParallel(model), torch.compile(model), AveragedModel(model)):
        torch.save(wrapped.state_dict(), tmp_path / "wrapped.pt")
        assert_equal(read_checkpoint(tmp_path / "wrapped.pt"), model.state_dict())


def test_safetensors_under_any_ending_and_the_old_format(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    read = read_checkpoint(tmp_path / "model.safetensors")
    assert holds_float_weights(tmp_path / "model.safetensors")
    (tmp_path / "model.pt").write_bytes((tmp_path / "model.safetensors").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"overwritten")  # what was read does not change with its file
    assert_equal(read, state)
    assert_equal(read_checkpoint(tmp_path / "model.pt"), state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_equal(read_checkpoint(tmp_path / "old.pt"), state)


def test_of_several_sets_the_model_is_taken_and_the_others_are_named(
    model: nn.Module, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = build_embedded(seed=8).state_dict()
    torch.save({"ema": other, "model": model.state_dict()}, tmp_path / "two.pt")
    assert_equal(read_checkpoint(tmp_path / "two.pt"), model.state_dict())
    assert 'took "model", left "ema"' in caplog.text


# --- what is refused


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("code from the file ran",))


def lora(state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = "image_encoder.trunk.blocks.0.attn.qkv.lora_A.weight"
    return {**state, name: torch.zeros(2, 32)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, r"no state dict of a SAM2 \(found keys \['state_dict'\]\)"),
        ({}, r"no state dict of a SAM2 \(found keys \[\]\)"),
        ([1, 2], "found a list"),
        (torch.zeros(2), "found a Tensor"),
        ({"model": torch.zeros(2)}, "no state dict of a SAM2"),
        ({"model": Evil()}, "not a complete PyTorch checkpoint of plain tensors"),
        (nn.Linear(2, 2), r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\).*model\.state_dict\(\)"),
        ({"image_encoder.patch_embed.proj.weight": torch.zeros(1)}, "of the first Segment Anything"),
        ({"sam_mask_decoder.conv_s0.bias": torch.zeros(1)}, "a part of one, sam_mask_decoder: load it into the whole"),
        ({"image_encoder.x.lora_A.weight": torch.zeros(1)}, "adapters .LoRA. alone"),
    ],
)
def test_foreign_files(tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "foreign.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "foreign.pt")
    assert "code from the file ran" not in capsys.readouterr().out


def text(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "no_mem_embed": "text"}


def without_data(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "no_mem_embed": torch.zeros(1, device="meta")}


def twice(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "module.no_mem_embed": torch.zeros(1)}


def prepared(state: dict[str, Tensor]) -> dict[str, Any]:
    return {**state, "image_encoder.trunk.blocks.0.attn.qkv.weight_fake_quant.log_alpha": torch.zeros(1)}


def beside_an_average(state: Any) -> Any:
    return {
        **prefixed(state, "ema."),
        **{name: value + 1 for name, value in state.items() if "mask_decoder" not in name},
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lora, r"adapters \(LoRA\).*merge them first"),
        (text, "no_mem_embed is no plain tensor but a str"),
        (without_data, "no_mem_embed is no plain tensor but a tensor of another kind"),
        (twice, "two tensors for no_mem_embed"),
        (beside_an_average, r"two tensors for .*, with and without 'ema\.'"),
        (prepared, "of a prepared model, with quantizers"),
    ],
)
def test_state_dicts_that_are_no_float_model(model: nn.Module, tmp_path: Path, change: Any, message: str) -> None:
    torch.save(change(model.state_dict()), tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "odd.pt")


def test_a_whole_model_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(CheckpointError, match=r"whole model.*runs code.*torch\.save\(\{\"model\": model\.state_dict"):
        read_checkpoint(tmp_path / "whole.pt")


def test_packed_files_are_models_themselves(packed_file: Path, tmp_path: Path) -> None:
    assert not holds_float_weights(packed_file)
    with pytest.raises(CheckpointError, match=r"is a packed file, which takes no config: give it as the model itself$"):
        read_checkpoint(packed_file)
    other = shutil.copy(packed_file, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"itself, with the name .*model\.safetensors$"):
        read_checkpoint(other)


@pytest.mark.parametrize("keep", [0, 10, 1000, 0.5, 0.99])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_truncated_files(model: nn.Module, tmp_path: Path, keep: float, ending: str) -> None:
    path = tmp_path / f"model.{ending}"
    if ending == "pt":
        torch.save({"model": model.state_dict()}, path)
    else:
        save_file(model.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 10 else keep * len(content))])
    with pytest.raises(CheckpointError, match=rf"model\.{ending} is not a complete .*download it again"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("start", "message"),
    [(b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"), (b"<!DOCTYPE html><html>", "a web page")],
)
def test_what_was_downloaded_instead(tmp_path: Path, start: bytes, message: str) -> None:
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(CheckpointError, match=message):
            read_checkpoint(tmp_path / name)


# --- folders of transformers


def folder_of(path: Path, state: dict[str, Tensor], **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "sam2_video", **config}))
    save_file(state, path / "model.safetensors")
    return path


def test_a_folder_in_several_files(model: nn.Module, tmp_path: Path) -> None:
    state = model.state_dict()
    folder = folder_of(tmp_path / "sharded", {})
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[:50], "b.safetensors": names[50:]}
    for file, members in shards.items():
        save_file({name: state[name] for name in members}, folder / file)
    index = {"weight_map": {name: file for file, members in shards.items() for name in members}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_equal(read_checkpoint(folder), state)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b\.safetensors, which .* names, is not there"):
        read_checkpoint(folder)
    index["weight_map"] = {"x": "../a.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="is not there"):
        read_checkpoint(folder)


def test_folders_that_hold_no_sam2(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"of type 'bert'"):
        read_checkpoint(folder_of(tmp_path / "bert", {}, model_type="bert"))
    with pytest.raises(CheckpointError, match=r"holds a quantized model \(qsam2\)"):
        read_checkpoint(folder_of(tmp_path / "packed", {}, quantization_config={"quant_method": "qsam2", "layers": {}}))
    for number, broken in enumerate((b"{", b"\xff", b"[]", b'{"model_type": "sam2", "vision_config": 3}')):
        folder = folder_of(tmp_path / str(number), {})
        (folder / "config.json").write_bytes(broken)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_checkpoint(folder)
    folder = folder_of(tmp_path / "adapters", {})
    (folder / "adapter_config.json").write_text("{}")
    assert holds_float_weights(folder)
    with pytest.raises(CheckpointError, match=r"merge_and_unload"):
        read_checkpoint(folder)
    assert not holds_float_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_checkpoint(tmp_path)


def test_windows_and_heads_that_no_tensor_tells(model: nn.Module, tmp_path: Path) -> None:
    trunk: Any = model.get_submodule("image_encoder.trunk")
    heads = [1, 2, 4, 8]
    same = {
        "window_size_per_stage": list(trunk.window_spec),
        "global_attention_blocks": None,
        "num_attention_heads_per_stage": heads,
    }
    check_settings(folder_of(tmp_path / "a", {}, vision_config={"backbone_config": same}), model)
    for key in same:
        other = {**same, key: [1, 2]}
        with pytest.raises(CheckpointError, match=rf"its config has {key} \[1, 2\], and the model has"):
            check_settings(folder_of(tmp_path / key, {}, vision_config={"backbone_config": other}), model)
    check_settings(tmp_path / "a" / "model.safetensors", model)


def test_the_input_size_of_a_folder(tmp_path: Path) -> None:
    def sized(name: str, size: Any) -> Path:
        return folder_of(tmp_path / name, {}, vision_config={"backbone_config": {"image_size": size}})

    assert image_size_of(sized("a", [512, 512])) == 512
    assert image_size_of(sized("b", 1024)) == 1024
    assert image_size_of(folder_of(tmp_path / "c", {}, vision_config=None)) is None
    assert image_size_of(tmp_path / "a" / "model.safetensors") is None
    for name, size in (("d", [512, 256]), ("e", "big"), ("f", 100), ("g", [[512], [512]]), ("h", {"height": 512})):
        with pytest.raises(CheckpointError, match="image_size"):
            image_size_of(sized(name, size))
