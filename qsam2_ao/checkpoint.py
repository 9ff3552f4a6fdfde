"""save_qsam2 and load_qsam2: a deployed model in one safetensors file, read strictly and without running code.

The header holds the format's version, the model's configuration (classes of the sam2 package and their arguments), the
plan (every quantized layer) and a description of how the file was made. A packed weight is stored as the tensors
``<layer>.weight.codes``, ``.scale`` and ``.zero_point``; everything else under its name in the state dict. Zero points
that are all equal, as those of symmetric grids are, are stored once.

Version 1 differs in one thing: the tensors of a part that is one lone layer, such as ``sam_mask_decoder.conv_s0``, are
named ``<part>.layer.weight`` there, and after the layer itself since.
"""

from __future__ import annotations

import gc
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from .deploy.assemble import deploy_part, record_layers
from .deploy.inputs import ActivationQuantizer
from .deploy.packed import PackedIntxTensor
from .deploy.record import LayerRecord
from .deploy.targets import lower_to
from .devices import usable_device
from .errors import CheckpointError, GraphTraceError, QSAM2Error
from .files import save_tensors
from .graph import SINGLE_LAYER, as_part, trace_part
from .models.config import build_from_config, model_config
from .models.wrappers import check_bare
from .stage import ModelStage, set_stage, stage_of
from .tensor_file import TensorFile
from .threads import one_thread_if_small, survive_forks

FORMAT = "qsam2"
FORMAT_VERSION = 2
_INNER = ("codes", "scale", "zero_point")


@dataclass(frozen=True)
class Header:
    """What a file says about itself.

    Attributes:
        config: The model's configuration, as ``models.config.model_config`` gives it.
        plan: The quantized layers.
        quantizers: Path of each input quantizer -> (quant_min, quant_max).
        dtypes: Path of each packed weight that appears in another dtype than float32 -> that dtype.
        info: How the file was made: recipe, calibration, package versions.
        version: Of the file's format.
    """

    config: dict[str, Any]
    plan: tuple[LayerRecord, ...]
    quantizers: dict[str, tuple[int, int]]
    dtypes: dict[str, str]
    info: dict[str, Any]
    version: int


@torch.inference_mode(False)
def save_qsam2(model: SAM2Base, path: str | os.PathLike[str]) -> None:
    """Write a deployed model to one safetensors file, the same bytes for the same model.

    Args:
        model: A model from ``convert_qsam2`` or ``load_qsam2`` with packed weights.
        path: The file; written under a temporary name and renamed, so an error leaves an old file as it was.

    Raises:
        CheckpointError: The model is not deployed, has modules that SAM2 has not (a head of your own), was lowered to a
            layout that depends on the machine, or was changed so that the file could not be loaded.
        QSAM2Error: The file cannot be written.

    Example:
        >>> save_qsam2(quantized, "w4a8.safetensors")
    """
    check_bare(model, "save_qsam2")
    stage = stage_of(model)
    if not stage.layers:
        raise CheckpointError("the model has no packed weights; call convert_qsam2 first (sam2 saves float models)")
    if stage.unsaved is not None:
        raise CheckpointError(f"the model cannot be saved: {stage.unsaved}")
    if any(taken.target == "dequantized" for taken in stage.targets.values()):
        raise CheckpointError('the weights of the model are dequantized: load the file with target="packed" to save it')
    tensors: dict[str, Tensor] = {}
    dtypes: dict[str, str] = {}
    for name, value in model.state_dict().items():
        if isinstance(value, PackedIntxTensor):
            tensors.update({f"{name}.{inner}": tensor for inner, tensor in value.inner_tensors().items()})
            if value.dtype != torch.float32:
                dtypes[name] = value.spec()["dtype"]
            zero_point = value.zero_point.flatten()
            if bool((zero_point == zero_point[0]).all()):
                tensors[f"{name}.zero_point"] = zero_point[:1]
        elif type(value) in (Tensor, torch.nn.Parameter):
            tensors[name] = value
        else:
            raise CheckpointError(
                f"{name} is a {type(value).__name__}, whose layout depends on this machine; load the file with "
                'target="packed" to save it again'
            )
    quantizers = {
        name: (module.quant_min, module.quant_max)
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer)
    }
    config = model_config(model)
    info = {**(stage.info or {}), "versions": _versions()}
    header = Header(config, tuple(stage.layers), quantizers, dtypes, info, FORMAT_VERSION)
    rebuilt: SAM2Base = build_from_config(config, meta=True)
    own = {*rebuilt.state_dict(), *(f"{name}.{inner}" for name in quantizers for inner in ("scale", "zero_point"))}
    if added := sorted(model.state_dict().keys() - own):
        raise CheckpointError(
            f"the model cannot be saved: {added[0]} is no part of SAM2 ({len(added)} such tensors); take it off, and "
            "save it apart"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    _check_names("the model cannot be saved, it was changed since it was converted", shapes, rebuilt, header)
    metadata = {
        "format": FORMAT,
        "format_version": str(header.version),
        "config": json.dumps(config, sort_keys=True),
        "plan": json.dumps([layer.to_dict() for layer in header.plan]),
        "quantizers": json.dumps(quantizers, sort_keys=True),
        "dtypes": json.dumps(dtypes, sort_keys=True),
        "info": json.dumps(info, sort_keys=True),
    }
    save_tensors(tensors, path, metadata)


@torch.inference_mode(False)
def load_qsam2(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    model_class: type[SAM2Base] | None = None,
    target: str = "packed",
) -> SAM2Base:
    """Load a deployed model; no float weight of a quantized layer is ever made.

    The file is read, not mapped: whatever happens to it afterwards, the model stays as it is.

    Args:
        path: A file from ``save_qsam2``.
        device: Where to load the tensors.
        model_class: The SAM2 class to build (``SAM2Base``, ``SAM2VideoPredictor``, ``SAM2Train``, a subclass);
            None for the class that was saved.
        target: What the packed weights become: "auto" takes the fastest that this machine has; "packed" keeps them,
            to be saved again or moved to another device, and computes what was trained to the bit; "int8", "onednn",
            "dequantized" and "int4" as ``lower_to`` says. The coverage report says where a layer did not get its
            target, and why.

    Returns:
        The model in eval mode.

    Raises:
        CheckpointError: The file is absent, truncated, of another kind or model, of a newer format, has a missing,
            unknown or misshapen tensor, naming it, or changes while it is read.
        QSAM2Error: There is no such device here.

    Example:
        >>> predictor = SAM2ImagePredictor(load_qsam2("tiny-w4a8.safetensors"))
    """
    survive_forks()
    device = usable_device(device)
    with _no_collection():
        with TensorFile(path) as file:
            header = _header(file, path)
            model = build_from_config(header.config, meta=True, model_class=model_class)
            with one_thread_if_small(model):
                _fill(model, _Tensors(file, header, device), header, path)
        with one_thread_if_small(model):
            lower_to(model.to(device).eval(), target)
            return model


def read_header(path: str | os.PathLike[str]) -> Header:
    """Read what a file says about itself, without its tensors.

    Args:
        path: A file from ``save_qsam2``.

    Returns:
        The header.

    Raises:
        CheckpointError: As ``load_qsam2``.

    Example:
        >>> read_header("tiny-w4a8.safetensors").plan[0].bits
        8
    """
    with TensorFile(path) as file:
        return _header(file, path)


def _header(file: TensorFile, path: str | os.PathLike[str]) -> Header:
    metadata = file.metadata
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one that save_qsam2 wrote; a float checkpoint is quantized first"
        )
    file_version = metadata.get("format_version", "")
    if not (file_version.isascii() and file_version.isdecimal()) or int(file_version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {file_version!r}, this package reads up to {FORMAT_VERSION}; upgrade qsam2_ao"
        )
    try:
        return Header(
            config=json.loads(metadata["config"]),
            plan=tuple(LayerRecord.from_dict(layer) for layer in json.loads(metadata["plan"])),
            quantizers={
                name: (int(low), int(high)) for name, (low, high) in json.loads(metadata["quantizers"]).items()
            },
            dtypes=dict(json.loads(metadata["dtypes"] if int(file_version) > 1 else "{}")),
            info=dict(json.loads(metadata["info"])),
            version=int(file_version),
        )
    except CheckpointError as error:  # a ValueError too
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({type(error).__name__}: {error})") from error


class _Tensors:
    """The tensors of an open file under the names that the model has for them."""

    def __init__(self, file: TensorFile, header: Header, device: torch.device | str) -> None:
        self._file, self._device = file, device
        single = [plan for plan in header.plan if plan.layer == SINGLE_LAYER and header.version == 1]
        renamed = {f"{plan.part}.{plan.layer}.": f"{plan.name}." for plan in single}
        self.names: dict[str, str] = {}
        for stored in file.names:
            old = next((prefix for prefix in renamed if stored.startswith(prefix)), "")
            self.names[renamed.get(old, "") + stored.removeprefix(old)] = stored

    def get_tensor(self, name: str) -> Tensor:
        return self._file.tensor(self.names[name], self._device)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._file.shape(stored) for name, stored in self.names.items()}


class _Collector:
    """Python's garbage collector, off while any thread loads."""

    lock = threading.Lock()
    users = 0
    was_on = False


@contextmanager
def _no_collection() -> Iterator[None]:
    """Graphs are many objects that stay: looking for garbage among all there are takes half of the time of loading."""
    state = _Collector
    with state.lock:
        if state.users == 0:
            state.was_on = gc.isenabled()
            gc.disable()
        state.users += 1
    try:
        yield
    finally:
        with state.lock:
            state.users -= 1
            if state.users == 0 and state.was_on:
                gc.enable()


def _fill(model: SAM2Base, file: _Tensors, header: Header, path: str | os.PathLike[str]) -> None:
    """Give a model without storage the file's tensors, and its quantized layers their packed weights."""
    parts: dict[str, list[LayerRecord]] = {}
    for layer in header.plan:
        parts.setdefault(layer.part, []).append(layer)
    graphs = {part: _trace(model, part, path) for part in parts}
    _check_names(str(path), file.shapes, model, header)
    for part, layers in parts.items():
        weights = {plan.layer: _packed(file, plan, header, path) for plan in layers}
        quantizers = {
            name: _activation_quantizer(file, f"{part}.{name}", header, path)
            for name in dict.fromkeys(plan.activation for plan in layers)
            if name is not None
        }
        deploy_part(graphs[part], layers, weights, quantizers, compiled=False)
        model.set_submodule(part, as_part(graphs[part]))
    _fill_float(model, file, path)
    set_stage(
        model, ModelStage(config=header.config, info=header.info, images_only=bool(header.info.get("images_only")))
    )
    record_layers(model, header.plan)


def _fill_float(model: SAM2Base, file: _Tensors, where: str | os.PathLike[str]) -> None:
    """Give a model, whose names and shapes were checked, what is neither a packed weight nor of an input quantizer.

    ``load_state_dict`` would do the same, and first look at all of it.
    """

    def like(wanted: Tensor, name: str) -> Tensor:
        tensor = file.get_tensor(name)
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(f"{where}: tensor {name!r} is {tensor.dtype}, and the model's is {wanted.dtype}")
        return tensor

    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, ActivationQuantizer):
            continue
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, PackedIntxTensor):
                tensor = like(parameter, prefix + name)
                module._parameters[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                module._buffers[name] = like(buffer, prefix + name)


def _trace(model: SAM2Base, part: str, path: str | os.PathLike[str]) -> torch.fx.GraphModule:
    try:
        return trace_part(model.get_submodule(part), part, compiled=False)
    except (AttributeError, GraphTraceError) as error:
        raise CheckpointError(f"{path}: its plan names a part {part!r} that its model does not have") from error


def _check_names(where: str, found: Mapping[str, tuple[int, ...]], model: SAM2Base, header: Header) -> None:
    """Refuse tensors, by name and shape, that are not exactly those of the model that a header describes."""
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for layer in header.plan:
        name = f"{layer.name}.weight"
        if expected.pop(name, None) != layer.shape:
            raise CheckpointError(f"{where}: its plan has a layer {layer.name!r} {layer.shape} that its model has not")
        try:
            packed = PackedIntxTensor.empty(
                layer.shape, layer.bits, layer.granularity, layer.group_size, device="meta"
            ).inner_tensors()
        except QSAM2Error as error:
            raise CheckpointError(f"{where}: its plan has no such layer as {layer.name!r}: {error}") from error
        expected.update({f"{name}.{inner}": tuple(packed[inner].shape) for inner in _INNER})
    named = {f"{layer.part}.{layer.activation}" for layer in header.plan if layer.activation}
    if odd := sorted(named ^ set(header.quantizers)):
        raise CheckpointError(f"{where}: its plan and its list of input quantizers disagree on {odd[0]!r}")
    for quantizer in header.quantizers:
        expected.update({f"{quantizer}.scale": (1,), f"{quantizer}.zero_point": (1,)})
    if missing := sorted(expected.keys() - found.keys()):
        raise CheckpointError(f"{where}: tensor {missing[0]!r} is missing ({len(missing)} in all)")
    if extra := sorted(found.keys() - expected.keys()):
        raise CheckpointError(f"{where}: unknown tensor {extra[0]!r} ({len(extra)} in all); it is of another model")
    for name, shape in expected.items():
        if found[name] != shape and not (found[name] == (1,) and name.endswith(".weight.zero_point")):
            raise CheckpointError(f"{where}: tensor {name!r} has shape {found[name]}, the model needs {shape}")


def _packed(file: _Tensors, layer: LayerRecord, header: Header, path: str | os.PathLike[str]) -> PackedIntxTensor:
    name = f"{layer.name}.weight"
    spec = {
        "shape": list(layer.shape),
        "bits": layer.bits,
        "granularity": layer.granularity,
        "group_size": layer.group_size,
        "dtype": header.dtypes.get(name, "float32"),
    }
    inner = {inner: file.get_tensor(f"{name}.{inner}") for inner in _INNER}
    inner["zero_point"] = inner["zero_point"].expand(inner["scale"].shape).contiguous()
    try:
        return PackedIntxTensor.from_inner(spec, inner)
    except QSAM2Error as error:
        raise CheckpointError(f"{path}: {layer.name}: {error}") from error


def _activation_quantizer(
    file: _Tensors, name: str, header: Header, path: str | os.PathLike[str]
) -> ActivationQuantizer:
    scale, zero_point = (file.get_tensor(f"{name}.{inner}") for inner in ("scale", "zero_point"))
    try:
        return ActivationQuantizer(*header.quantizers[name], scale, zero_point)
    except QSAM2Error as error:
        raise CheckpointError(f"{path}: {name}: {error}") from error


def _versions() -> dict[str, str]:
    return {package: version(package) for package in ("qsam2_ao", "torch", "torchao", "sam2")}
