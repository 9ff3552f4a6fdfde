"""Files of SAM2 weights, in whatever form people have them, as one state dict in the official names.

Taken are Meta's ``.pt`` files, bare state dicts, those of wrapped, compiled and averaged models, checkpoints of SAM2's
trainer and of others, ``.safetensors``, and what transformers saves of ``Sam2Model`` and ``Sam2VideoModel``. No code in
a file is run.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError
from ..tensor_file import TensorFile
from . import hub, sizes

logger = logging.getLogger(__name__)

#: Endings of files that ``torch.save`` wrote.
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".tar")
_INDEX, _ONE_FILE, _PICKLED_FILE = "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin"
#: What wrappers put into names: DataParallel, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(^|(?<=\.))(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
#: Where the weights to use are if a file holds several sets.
_USUAL = ("model", "state_dict", "model_state_dict")
#: A counter that torch's averaged models keep beside their weights.
_COUNTER = "n_averaged"
_GLOBAL = re.compile(r"(?:Unsupported global: GLOBAL|Unsupported class|GLOBAL) ([\w.]+)")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a file or folder, without running any code from it.

    Args:
        path: A file of Meta's, of SAM2's trainer or another one, a bare state dict, ``.safetensors``, or a folder that
            transformers saved a ``Sam2Model`` or ``Sam2VideoModel`` in.

    Returns:
        The tensors on the CPU, by their names in SAM2. Whether a model has them is for ``load_official_state`` to say.

    Raises:
        CheckpointError: It is absent, truncated, pickled whole, without weights of a SAM2, of a quantized or prepared
            model, or has adapters that were not merged.

    Example:
        >>> state = read_checkpoint("sam2.1_hiera_tiny.pt")  # doctest: +SKIP
    """
    place = Path(path)
    if place.is_dir():
        content: object = _read_folder(place)
    elif not place.is_file():
        raise CheckpointError(f"{path}: no such file; download the checkpoint or correct the path")
    elif _is_safetensors(place):
        content = _read_safetensors(place)
    else:
        content = _read_pickled(place)
    state = _in_official_names(_choose(content, str(path)), str(path))
    _check_kind(state, str(path))
    return state


def holds_float_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is a checkpoint in float, rather than a packed model or a folder of exported files.

    Args:
        path: Any path.

    Example:
        >>> holds_float_weights("sam2.1_hiera_tiny.pt")  # doctest: +SKIP
        True
    """
    place = Path(path)
    if place.is_dir():
        return any((place / name).is_file() for name in ("config.json", "adapter_config.json", _INDEX, _ONE_FILE))
    if not place.is_file():
        return False
    if place.suffix.lower() in PICKLED:
        return True
    try:
        with safe_open(place, framework="pt") as file:
            return (file.metadata() or {}).get("format") != "qsam2" and any(
                _WRAPPERS.sub("", name).endswith((sizes.MARK, hub.MARK))
                for name in file.keys()  # noqa: SIM118
            )
    except (SafetensorError, OSError):
        return False


def image_size_of(path: str | os.PathLike[str]) -> int | None:
    """The side of the input in pixels that a folder of transformers names; None for all else.

    Raises:
        CheckpointError: The folder's config is broken, of another model, or of a square that SAM2 does not have.
    """
    if not Path(path).is_dir():
        return None
    size = _read_config(Path(path)).get("vision_config", {}).get("backbone_config", {}).get("image_size")
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size]
    numbers = all(isinstance(side, int) and side > 0 and side % 32 == 0 for side in sides)
    if not numbers or len(set(sides)) != 1:
        raise CheckpointError(f"{path}: its config has image_size {size}; SAM2 reads squares of a multiple of 32")
    return int(sides[0])


def check_settings(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Refuse a folder of transformers whose config has windows, global blocks or heads that the model has not.

    No tensor tells them.

    Args:
        path: A checkpoint; of other forms than a folder nothing is checked.
        model: The model that its weights are for.

    Raises:
        CheckpointError: They differ.
    """
    if not Path(path).is_dir():
        return
    given = _read_config(Path(path))["vision_config"]["backbone_config"]
    trunk: Any = model.get_submodule("image_encoder.trunk")
    heads = [trunk.blocks[end].attn.num_heads for end in trunk.stage_ends]
    for theirs, own, ours in (
        ("window_size_per_stage", trunk.window_spec, "window_spec"),
        ("global_attention_blocks", trunk.global_att_blocks, "global_att_blocks"),
        ("num_attention_heads_per_stage", heads, "num_heads and head_mul"),
    ):
        value = given.get(theirs)
        if value is not None and value != list(own):
            raise CheckpointError(
                f"{path}: its config has {theirs} {value}, and the model has {list(own)}; name a YAML file with its "
                f"{ours}"
            )


def _read_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder} holds adapters (LoRA) and not the model they belong to; merge first: "
            "model.merge_and_unload().save_pretrained(FOLDER)"
        )
    _read_config(folder)
    if (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX)
        files = index.get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise CheckpointError(f"{folder / _INDEX} has no map of weights; save the model again")
        state: dict[str, Tensor] = {}
        for name in sorted(set(files.values())):
            if Path(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name}, which {_INDEX} names, is not there; copy it too")
            state.update(_read_safetensors(folder / name))
        return state
    if (folder / _ONE_FILE).is_file():
        return _read_safetensors(folder / _ONE_FILE)
    if (folder / _PICKLED_FILE).is_file():
        content = _read_pickled(folder / _PICKLED_FILE)
        if isinstance(content, dict):
            return content
    raise CheckpointError(f"{folder} has no {_ONE_FILE}; name a checkpoint, or a folder that save_pretrained wrote")


def _read_config(folder: Path) -> dict[str, Any]:
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("sam2", "sam2_video"):
        raise CheckpointError(
            f"{folder} is of a model of type {kind!r}; Sam2Model (sam2) and Sam2VideoModel (sam2_video) can be read"
        )
    if (quantized := config.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise CheckpointError(
            f"{folder} holds a quantized model ({method}), which transformers' from_pretrained loads; name the float "
            "model's folder, or the packed .safetensors file"
        )
    vision = config.get("vision_config") or {}
    if not isinstance(vision, dict) or not isinstance(vision.get("backbone_config") or {}, dict):
        raise CheckpointError(f"{folder / 'config.json'}: its vision_config is no config; save the model again")
    # Both may be null, which means the library's own.
    return {**config, "vision_config": {**vision, "backbone_config": vision.get("backbone_config") or {}}}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}; name a checkpoint file, or a folder that save_pretrained wrote"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON ({error}); save the model again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no JSON object; save the model again")
    return content


def _is_safetensors(path: Path) -> bool:
    if path.suffix.lower() == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        opened = TensorFile(path)
    except CheckpointError as error:
        reason = _reason(error.__cause__ or error)
        raise CheckpointError(f"{path} is not a complete safetensors file ({reason}){_start(path)}") from error
    with opened as file:
        if file.metadata.get("format") == "qsam2":
            renamed = "" if path.suffix == ".safetensors" else f", with the name {path.with_suffix('.safetensors')}"
            raise CheckpointError(
                f"{path} is a packed file, which takes no config: give it as the model itself{renamed}"
            )
        return {name: file.tensor(name) for name in file.names}


def _read_pickled(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        text = str(error)
        # torch names the class that the file would have to import.
        if (found := _GLOBAL.search(text)) is not None:
            raise CheckpointError(
                f"{path} is not a complete PyTorch checkpoint of plain tensors: it holds Python objects "
                f"({found[1]}), such as a whole model, and reading those runs code from the file. Where it was made, "
                'save the weights alone: torch.save({"model": model.state_dict()}, "weights.pt")'
            ) from error
        if "TorchScript" in text:
            raise CheckpointError(
                f"{path} is a TorchScript program, not a PyTorch checkpoint; save the state dict of the model it is of"
            ) from error
        raise CheckpointError(
            f"{path} is not a complete PyTorch checkpoint of plain tensors ({_reason(error)}){_start(path)}"
        ) from error


def _reason(error: BaseException) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]


def _start(path: Path) -> str:
    """What a file's first bytes say of how it came to be what it is."""
    try:
        with open(path, "rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError:
        return ""
    if not start:
        return "; it is empty: download it again"
    if start.startswith(b"version https://git-lfs"):
        return "; it is a pointer of Git LFS: get the file itself with git lfs pull"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "; it is a web page, perhaps one that says why the download failed"
    return "; download it again"


def _choose(content: object, source: str) -> dict[str, Tensor]:
    """The one state dict in what a file holds."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} has no state dict (found a {type(content).__name__}){_EXPECTED}")
    found = dict(_state_dicts(content, "", 3))
    if not found:
        raise CheckpointError(f"{source} has no state dict of a SAM2 ({_instead(content)}){_EXPECTED}")
    chosen = next((name for name in _USUAL if name in found), next(iter(found)))
    if others := [name for name in found if name != chosen]:
        logger.warning(
            '%s holds several sets of weights: took "%s", left "%s"; save another one by itself to use it',
            source,
            chosen,
            '", "'.join(others),
        )
    return found[chosen]


_EXPECTED = '; a checkpoint in SAM2\'s format is {"model": state dict}, and a bare state dict is taken too'
#: First names of SAM2's tensors outside of the image encoder.
_PARTS = ("sam_mask_decoder", "sam_prompt_encoder", "memory_attention", "memory_encoder", "mask_decoder")


def _instead(content: Mapping[Any, Any]) -> str:
    """What a file without an image encoder holds."""
    inner = [value for value in content.values() if isinstance(value, Mapping)]
    names = [_WRAPPERS.sub("", key) for part in (content, *inner) for key in part if isinstance(key, str)]
    if "image_encoder.patch_embed.proj.weight" in names or "vision_encoder.patch_embed.projection.weight" in names:
        return "it is of the first Segment Anything, which is another network"
    if any("lora_" in name for name in names):
        return "it holds adapters (LoRA) alone: put them into their model, merge them there and save that"
    if parts := sorted({part for part in _PARTS if any(name.startswith(f"{part}.") for name in names)}):
        return f"it is a part of one, {', '.join(parts)}: load it into the whole model with strict=False and save that"
    return f"found keys {[str(key)[:80] for key in list(content)[:5]]}"


def _state_dicts(content: Mapping[Any, Any], name: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dict inside that has the first tensor of an image encoder, under its path."""
    if any(isinstance(key, str) and _WRAPPERS.sub("", key).endswith((sizes.MARK, hub.MARK)) for key in content):
        yield name, dict(content)
        return
    for key, value in content.items():
        if depth and isinstance(key, str) and isinstance(value, Mapping):
            yield from _state_dicts(value, f"{name}.{key}" if name else key, depth - 1)


def _in_official_names(state: dict[Any, Any], source: str) -> dict[str, Tensor]:
    names: dict[str, str] = {}
    for key in state:
        name = _WRAPPERS.sub("", str(key))
        if name in names:
            raise CheckpointError(f"{source} has two tensors for {name}: {names[name]} and {key}")
        names[name] = key
    mark, prefix = next(
        (mark, name.removesuffix(mark)) for name in names for mark in (sizes.MARK, hub.MARK) if name.endswith(mark)
    )
    if any("lora_" in name or ".base_layer." in name for name in names):
        raise CheckpointError(
            f"{source} has adapters (LoRA) beside the weights they change; merge them first (of peft: "
            "model.merge_and_unload()) and save the state dict then"
        )
    plain = {}
    for name, key in names.items():
        value = state[key]
        if name == _COUNTER:
            continue
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_meta:
            raise CheckpointError(f"{source}: {key} is no plain tensor but {_kind(value)}; save the float state dict")
        bare = name.removeprefix(prefix)
        if bare in plain:
            raise CheckpointError(f"{source} has two tensors for {bare}, with and without {prefix!r}; save one set")
        plain[bare] = value
    return hub.official_names(plain, source) if mark == hub.MARK else plain


def _kind(value: object) -> str:
    if type(value) in (Tensor, nn.Parameter):
        return f"a tensor of another kind ({value.device}, {value.layout}, {value.dtype})"  # type: ignore[attr-defined]
    return f"a {type(value).__name__}"


def _check_kind(state: Mapping[str, Tensor], source: str) -> None:
    odd = [name for name in state if ".weight_fake_quant." in name or "input_quantizer" in name]
    if odd:
        raise CheckpointError(
            f"{source} is of a prepared model, with quantizers in it (such as {odd[0]}): load it into the model that "
            "prepare_qsam2 makes, and convert that"
        )
