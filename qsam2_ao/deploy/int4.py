"""torchao's int4 kernels, fed with the codes of a packed weight: weight-only, nn.Linear, at most 4 bits.

Both kernels compute with ``w = (u - 8) * s + z`` and float ``z``, so a packed weight ``(u - zero_point) * s``
fits exactly, whatever its zero point: fewer than 4 bits are moved to the middle of the 16 codes (``u + 8 -
2**(bits - 1)``), which leaves ``z`` small (``s / 2`` on the mid-rise grid), and scales per tensor or channel
are repeated per group.

CPU
    ``Int4OpaqueTensor`` in the packed weight's dtype. Its bytes depend on the instruction set of the
    processor that made them and are read wrongly, without an error, by another.
CUDA
    ``Int4TilePackedTo4dTensor``, tensor cores, bfloat16. Rows are padded to a multiple of 8, columns to 1024.

Either is therefore made when a model is loaded and never saved: :class:`Int4Linear` refuses to be.
Weight-only int4 saves memory; at the many tokens of an image encoder it is slower than bfloat16.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, UnsupportedLayerError
from ..quantizers.affine import expand_groups
from .packed import PackedIntxTensor
from .portable import why_not_packed

GROUP_SIZES = (128, 64, 32)
# Looked up when needed, since torchao may move or drop what it calls a prototype.
_TENSOR_CLASSES = {
    "cpu": ("torchao.prototype.quantization.int4", "Int4OpaqueTensor"),
    "cuda": ("torchao.quantization", "Int4TilePackedTo4dTensor"),
}
_CPU_ROWS = 16
_CUDA_ROWS, _CUDA_COLUMNS, _CUDA_INNER_TILES = 8, 1024, 8


class Int4Linear(nn.Linear):
    """A linear layer on one device's int4 kernel; casts its input to the kernel's dtype and the output back.

    Made by :func:`lower_int4`. It can be copied, but neither saved nor moved to another kind of device, since
    the layout of its weight is of this machine alone.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = bias  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: Floating tensor ``[..., in_features]``.

        Returns:
            Tensor ``[..., out_features]`` of ``x``'s dtype.
        """
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Int4Linear:
        clone = Int4Linear(self.weight.detach().clone(), copy.deepcopy(self.bias, memo))
        return clone.train(self.training)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        here = self.weight.device
        probe = fn(torch.empty(1, device=here))
        if probe.device.type != here.type:
            raise UnsupportedLayerError(
                f"an int4 layer made for {here.type} cannot move to {probe.device.type}: "
                "move the packed model, then lower it there"
            )
        if here.type == "cpu" and probe.is_shared():  # in torchao's tensor that would end in a crash
            raise UnsupportedLayerError(
                "an int4 layer cannot share its memory with other processes: let each process load the packed file"
            )
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.') or 'this layer'} holds int4 weights in the layout of this machine, which "
            "other machines would read wrongly: save the packed model, and lower it to int4 after loading (another "
            "process loads the packed file itself)"
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        self._save_to_state_dict(None, "", False)


def why_no_int4_on(device: torch.device) -> str | None:
    """Why torchao's int4 kernels cannot run any layer on a device.

    Args:
        device: Where layers will run.

    Returns:
        None if they can, else the reason as a sentence.

    Example:
        >>> why_no_int4_on(torch.device("mps"))
        "torchao has no int4 kernel of this layout for devices of type 'mps'."
    """
    if device.type not in _TENSOR_CLASSES:
        return f"torchao has no int4 kernel of this layout for devices of type {device.type!r}."
    if _tensor_class(device.type) is None:
        module_name, class_name = _TENSOR_CLASSES[device.type]
        return f"The installed torchao has no {module_name}.{class_name}; version 0.18 has."
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return "No CUDA device is available."
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
            return "The CUDA int4 kernel needs compute capability 8.0 or newer."
    return None


def why_not_int4(
    module: nn.Module,
    packed: PackedIntxTensor,
    device: torch.device | str | None = None,
    group_size: int | None = None,
) -> str | None:
    """Why torchao's int4 kernel cannot run a layer.

    Args:
        module: The float or fake-quantized layer.
        packed: Its weight.
        device: Where the layer will run; by default where ``packed`` is.
        group_size: The kernel's group size, by default the largest that fits.

    Returns:
        None if :func:`lower_int4` supports it, else the reason as a sentence for the coverage report.
    """
    reason = why_not_packed(module, packed)
    if reason is not None:
        return reason
    if not isinstance(module, nn.Linear):
        return "torchao's int4 kernels run nn.Linear only, not nn.Conv2d."
    if packed.bits > 4:
        return f"The weight has {packed.bits} bits and int4 holds 4 at most."
    target = torch.device(device) if device is not None else packed.device
    if (reason := why_no_int4_on(target)) is not None:
        return reason
    rows, columns = packed.shape
    if target.type == "cuda":
        columns = _multiple(columns, _CUDA_COLUMNS)
    elif packed.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"The CPU int4 kernel runs float32, bfloat16 and float16, not {packed.dtype}."
    elif rows % _CPU_ROWS:
        return f"The CPU int4 kernel needs out_features divisible by {_CPU_ROWS}, not {rows}."
    if group_size is not None and group_size not in GROUP_SIZES:
        return f"The int4 kernels run groups of {_choices()}, not {group_size}."
    if _group_size(columns, packed.group_size, group_size) is None:
        none = f"{group_size} does not" if group_size is not None else f"none of {_choices()} does"
        own = f" and the weight's own group size {packed.group_size}" if packed.group_size is not None else ""
        return f"The int4 group size must divide in_features {columns}{own}, and {none}."
    return None


def lower_int4(
    module: nn.Module,
    packed: PackedIntxTensor,
    device: torch.device | str | None = None,
    group_size: int | None = None,
) -> Int4Linear:
    """Build the layer that runs a packed weight's codes on torchao's int4 kernel.

    The weights are those of ``packed``: exactly on CPU in float32 (outputs differ from the dequantized
    layer's by rounding, measured below 1e-6 of the largest), with scale and ``z`` rounded to the kernel's
    dtype otherwise (below 1e-2 in bfloat16).

    Args:
        module: ``nn.Linear`` or its fake-quantized version; not modified.
        packed: The weight's codes; at most 4 bits.
        device: Where the layer will run; by default where ``packed`` is.
        group_size: The kernel's group size, 32, 64 or 128; by default the largest that fits.

    Returns:
        The lowered layer, sharing ``module``'s bias if that is on ``device``.

    Raises:
        UnsupportedLayerError: The kernel cannot run the layer; the message is the reason of
            :func:`why_not_int4`.

    Example:
        >>> reason = why_not_int4(linear, packed, "cpu")
        >>> fast = lower_int4(linear, packed, "cpu") if reason is None else lower_packed(linear, packed)
    """
    reason = why_not_int4(module, packed, device, group_size)
    if reason is not None:
        raise UnsupportedLayerError(f"cannot lower this layer to int4: {reason}")
    assert isinstance(module, nn.Linear)  # by why_not_int4
    packed = packed.to(device or packed.device)
    bias = module.bias
    if bias is not None and bias.device.type != packed.device.type:
        bias = nn.Parameter(bias.detach().to(packed.device), requires_grad=bias.requires_grad)
    build = _cpu_weight if packed.device.type == "cpu" else _cuda_weight
    return Int4Linear(build(packed, group_size), bias).train(module.training)


def _tensor_class(device_type: str) -> Any:
    module, name = _TENSOR_CLASSES[device_type]
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def _cpu_weight(packed: PackedIntxTensor, group_size: int | None) -> Tensor:
    codes, scale_and_zero, group = _kernel_operands(packed, group_size, 1, 1, packed.dtype)
    qdata = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return _tensor_class("cpu")(qdata, scale_and_zero, [1, group], packed.shape)


def _cuda_weight(packed: PackedIntxTensor, group_size: int | None) -> Tensor:
    codes, scale_and_zero, group = _kernel_operands(packed, group_size, _CUDA_ROWS, _CUDA_COLUMNS, torch.bfloat16)
    nibbles = (codes[:, ::2] << 4) | codes[:, 1::2]
    qdata = torch.ops.aten._convert_weight_to_int4pack(nibbles.contiguous(), _CUDA_INNER_TILES)
    return _tensor_class("cuda")(qdata, scale_and_zero, [1, group], packed.shape)


def _kernel_operands(
    packed: PackedIntxTensor,
    group_size: int | None,
    row_multiple: int,
    column_multiple: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, int]:
    """Codes, scales and zeros of ``w = (u - 8) * s + z``, padded to multiples of rows and columns.

    Returns:
        uint8 codes ``[rows, columns]``; ``[columns / group, rows, 2]`` of ``(s, z)`` in ``dtype``; the group
        size.
    """
    out, inputs = packed.shape
    rows, columns = _multiple(out, row_multiple), _multiple(inputs, column_multiple)
    group = _group_size(columns, packed.group_size, group_size)
    assert group is not None  # by why_not_int4
    offset = 8 - 2 ** (packed.bits - 1)

    def per_group(qparam: Tensor) -> Tensor:
        if packed.group_size is None:
            return qparam.reshape(-1, 1).expand(out, columns // group)
        # Padded columns continue the last group: whatever they hold meets inputs that are zero.
        ours = expand_groups(qparam, inputs, packed.group_size)[:, ::group]
        return nn.functional.pad(ours, (0, columns // group - ours.shape[1]))

    scale = per_group(packed.scale)
    zero = (8 - (per_group(packed.zero_point) + offset)) * scale
    scale_and_zero = torch.stack([scale, zero], dim=-1).transpose(0, 1)
    scale_and_zero = nn.functional.pad(scale_and_zero, (0, 0, 0, rows - out))
    codes = nn.functional.pad(packed.unpack() + offset, (0, columns - inputs, 0, rows - out))
    return codes, scale_and_zero.to(dtype).contiguous(), group


def _group_size(columns: int, own: int | None, wanted: int | None) -> int | None:
    for group in GROUP_SIZES if wanted is None else (wanted,):
        if columns % group == 0 and (own is None or own % group == 0):
            return group
    return None


def _multiple(n: int, of: int) -> int:
    return -(-n // of) * of


def _choices() -> str:
    return ", ".join(map(str, sorted(GROUP_SIZES)))
