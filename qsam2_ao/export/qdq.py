"""The layers of a deployed model as quantize-dequantize pairs around float layers, which other runtimes understand."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, fx, nn

from ..deploy.inputs import ActivationQuantizer
from ..deploy.integer_products import pair_may_saturate
from ..deploy.kernels.codes import CodeGrid
from ..deploy.kernels.linear import weight_centre
from ..deploy.packed import PackedIntxTensor
from ..deploy.record import LayerRecord
from ..errors import UnsupportedLayerError
from ..graph import graph_of
from ..graph.leaves import hiera_pos_embed
from ..stage import stage_of
from .rope import use_real_rope


@torch.library.custom_op("qsam2_export::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x`` on the grid of unsigned 8-bit codes; ``low`` and ``high`` are the values of its first and last code."""
    codes = torch.round(x.clamp(low, high) / scale + zero_point.float()).clamp(0, 255)
    return (codes - zero_point.float()) * scale


@quantize_dequantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("qsam2_export::dequantize", mutates_args=())
def dequantize(values: Tensor, scale: Tensor) -> Tensor:
    """A weight: int8 ``[out, ...]`` times float32 ``[out]``."""
    return values.float() * scale.reshape(-1, *[1] * (values.dim() - 1))


@dequantize.register_fake
def _(values: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


class QuantizeDequantize(nn.Module):
    """An input quantizer."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        grid = CodeGrid.of(quantizer)
        if not (float(grid.zero_point).is_integer() and 0 <= grid.zero_point <= 255):
            raise UnsupportedLayerError(
                f"its zero point is {grid.zero_point:g}, and those of the exported formats are whole, from 0 to 255"
            )
        self.register_buffer("scale", torch.tensor(grid.scale))
        self.register_buffer("zero_point", torch.tensor(int(grid.zero_point), dtype=torch.uint8))
        self.register_buffer("low", torch.tensor(-grid.zero_point * grid.scale))
        self.register_buffer("high", torch.tensor((grid.high - grid.zero_point) * grid.scale))

    def forward(self, x: Tensor) -> Tensor:
        """Round to the grid."""
        return quantize_dequantize(x, self.scale, self.zero_point, self.low, self.high)


class DequantizedLayer(nn.Module):
    """A linear layer or convolution with an int8 weight."""

    values: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, packed: PackedIntxTensor) -> None:
        super().__init__()
        zero_point, step = weight_centre(packed)
        values = packed.unpack().long() * step - int(zero_point * step)
        self.register_buffer("values", values.to(torch.int8))
        self.register_buffer("scale", (packed.scale.float() / step).expand(packed.shape[0]).contiguous())
        self.layer = [layer]  # for its geometry, without its weight
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the float layer."""
        layer: Any = self.layer[0]
        weight = dequantize(self.values, self.scale)
        if isinstance(layer, nn.Linear):
            return F.linear(x, weight, self.bias)
        return F.conv2d(x, weight, self.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


class Constant(nn.Module):
    """What does not depend on the input but for its size, kept for the one size that is exported."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, *args: Any) -> Tensor:
        """The value."""
        return self.value


def saturating_layers(model: SAM2Base) -> list[str]:
    """Names of the layers whose products saturate on CPUs that add two of them in 16 bits.

    Args:
        model: A deployed model.
    """

    def saturates(record: LayerRecord) -> bool:
        if record.activation_bits is None:
            return False
        weight = min(2**record.bits - 1, 128)  # a mid-rise grid is of odd numbers, on both sides of zero
        return pair_may_saturate(weight, 2**record.activation_bits - 1)

    return [record.name for record in stage_of(model).layers if saturates(record)]


def for_export(model: SAM2Base) -> SAM2Base:
    """A copy of a deployed model whose layers are quantize-dequantize pairs, for its own image size.

    Args:
        model: From ``load_qsam2`` with ``target="packed"``; not modified.

    Raises:
        UnsupportedLayerError: The model is lowered, or a layer's grid has no int8 form, naming the layer.
    """
    model = copy.deepcopy(model).eval()
    for part in dict.fromkeys(record.part for record in stage_of(model).layers):
        model.set_submodule(part, graph_of(model.get_submodule(part)))
    for record in stage_of(model).layers:
        path = f"{record.part}.{record.layer}"
        layer: Any = model.get_submodule(path)
        packed = getattr(layer, "weight", None)
        if not isinstance(packed, PackedIntxTensor):
            raise UnsupportedLayerError(f'{record.name} is lowered: load the file with target="packed" to export it')
        if packed.group_size is not None:
            raise UnsupportedLayerError(f"{record.name} has scales per group, which the export does not write")
        try:
            model.set_submodule(path, DequantizedLayer(layer, packed))
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(f"{record.name} cannot be exported: {error}") from error
    for name, module in list(model.named_modules()):
        if isinstance(module, ActivationQuantizer):
            try:
                model.set_submodule(name, QuantizeDequantize(module))
            except UnsupportedLayerError as error:
                raise UnsupportedLayerError(f"{name} cannot be exported: {error}") from error
    use_real_rope(model)
    for graph in (m for m in model.modules() if isinstance(m, fx.GraphModule)):
        _keep_positions(graph, model)
    return model


def _keep_positions(part: fx.GraphModule, model: SAM2Base) -> None:
    """Positional embeddings as constants of the model's image size."""
    for count, node in enumerate(list(part.graph.nodes)):
        if node.target is not hiera_pos_embed:
            continue
        embeddings = [_attribute(part, str(argument.target)) for argument in node.args[:2]]
        side = model.image_size // 4
        value = hiera_pos_embed(*embeddings, torch.empty(1, side, side, 1))
        part.add_submodule(f"position_{count}", Constant(value))
        with part.graph.inserting_before(node):
            node.replace_all_uses_with(part.graph.call_module(f"position_{count}", ()))
        part.graph.erase_node(node)
    part.graph.eliminate_dead_code()
    part.recompile()


def _attribute(module: nn.Module, path: str) -> Tensor:
    parent, _, name = path.rpartition(".")
    return getattr(module.get_submodule(parent), name)
