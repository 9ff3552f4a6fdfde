"""A quantized model's packed weights and input ranges inside a model of the transformers library."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import QSAM2Error
from ..models.hub import library_names
from ..models.sizes import OF_MEMORY
from ..optional import needed
from ..stage import stage_of
from .inputs import ActivationQuantizer
from .packed import PackedIntxTensor
from .portable import lower_packed

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

Model = TypeVar("Model", bound=nn.Module)


@torch.no_grad()
def to_transformers(quantized: SAM2Base, model: Model) -> Model:
    """Put a quantized model into a ``Sam2Model`` or ``Sam2VideoModel`` of transformers, in place.

    Names stay those of the library: ``...qkv.weight`` is the packed weight, ``...qkv.input_quantizer`` rounds what the
    layer reads to the learned range, and all other tensors are copied. What the model saves with ``save_pretrained``,
    ``from_pretrained`` reads after ``import qsam2_ao.deploy.transformers_files``, which this function does.

    Args:
        quantized: From ``convert_qsam2``, or ``load_qsam2`` with ``target="packed"``.
        model: The library's model of the same size; a ``Sam2Model`` gets what it has, which is all but the memory.

    Returns:
        ``model``.

    Raises:
        QSAM2Error: ``quantized`` has no packed weights, or none of the memory that ``model`` has; or ``model`` is of
            another size, or quantized already.
        MissingPackageError: transformers is not installed.

    Example:
        >>> theirs = Sam2VideoModel.from_pretrained("facebook/sam2.1-hiera-tiny")  # doctest: +SKIP
        >>> to_transformers(load_qsam2("tiny-w4a8.safetensors"), theirs).save_pretrained("tiny-w4a8")  # doctest: +SKIP
    """
    needed("transformers")
    from .transformers_files import attach_quantizer

    stage = stage_of(quantized)
    if not stage.layers:
        raise QSAM2Error("the model has no packed weights; call convert_qsam2 first")
    if any(taken.target == "dequantized" for taken in stage.targets.values()):
        raise QSAM2Error('the weights of the model are dequantized: load the file with target="packed"')
    own = quantized.state_dict()
    theirs = dict(model.state_dict(keep_vars=True))
    if any(isinstance(value, PackedIntxTensor) for value in theirs.values()):
        raise QSAM2Error("the model of transformers is quantized already; take a new one")
    names = library_names({name: value.shape for name, value in theirs.items()})
    if stage.images_only and (memory := sorted(name for name in names if name.startswith(OF_MEMORY))):
        raise QSAM2Error(
            f"the quantized model's weights came without the memory's, and the model of transformers has them "
            f"({memory[0]}): take a Sam2Model, or quantize a Sam2VideoModel"
        )
    _check_same_size(names, own, theirs)
    inputs = {
        record.name: None if record.activation is None else f"{record.part}.{record.activation}"
        for record in stage.layers
    }
    for name, places in names.items():
        layer = name.removesuffix(".weight")
        if layer not in inputs or layer == name:
            for place in places:
                _copy(own[name], theirs[place.name], place.row)
            continue
        weight = own[name]
        if not isinstance(weight, PackedIntxTensor):
            raise QSAM2Error(
                f'{name} is a {type(weight).__name__}, made for this machine; load the file with target="packed"'
            )
        [place] = places
        target = place.name.removesuffix(".weight")
        like = theirs[place.name]
        lowered = lower_packed(model.get_submodule(target), weight.to(like.device, like.dtype))
        path = inputs[layer]
        if path is not None:
            quantizer = quantized.get_submodule(path)
            assert isinstance(quantizer, ActivationQuantizer)
            put_in_front(lowered, copy.deepcopy(quantizer).to(like.device))
        model.set_submodule(target, lowered)
    attach_quantizer(model)
    return model


def put_in_front(layer: nn.Module, quantizer: ActivationQuantizer) -> None:
    """Let a layer round its input first.

    Args:
        layer: The layer, which keeps the quantizer as ``input_quantizer``.
        quantizer: With its range.
    """
    layer.input_quantizer = quantizer
    layer.register_forward_pre_hook(_round_input)


def _round_input(layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    quantizer: Any = layer.input_quantizer
    return (quantizer(arguments[0]), *arguments[1:])


def _copy(value: Tensor, to: Tensor, row: int | None) -> None:
    (to if row is None else to[row : row + 1]).copy_(value)


def _check_same_size(names: Mapping[str, Any], own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    for name, places in names.items():
        for place in places:
            shape = theirs[place.name].shape if place.row is None else theirs[place.name][:1].shape
            if name not in own:
                raise QSAM2Error(f"the model of transformers has {place.name}, and the quantized one has no {name}")
            if own[name].shape != shape:
                raise QSAM2Error(
                    f"{place.name} is {list(shape)} in the model of transformers, and {list(own[name].shape)} in the "
                    "quantized one; take a model of the same size"
                )
