"""The form of a packed weight: which shapes, dtypes and values its parts must have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import NonFiniteError, UnsupportedLayerError
from ...quantizers.affine import GRANULARITIES
from . import bitpack


def qparam_shape(shape: Sequence[int], granularity: str, group_size: int | None = None) -> tuple[int, ...]:
    """The shape of the scale and zero point of a weight.

    Args:
        shape: Shape of the weight, output channels first.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group along the flattened input dimensions, for "group" alone.

    Returns:
        ``(1,)``, ``(out,)`` or ``(out, ceil(K / group_size))`` with ``K`` the inputs of an output channel.

    Raises:
        UnsupportedLayerError: The arguments do not fit together.

    Example:
        >>> qparam_shape((96, 3, 7, 7), "group", 64)
        (96, 3)
    """
    if granularity not in GRANULARITIES:
        raise UnsupportedLayerError(f"granularity must be one of {', '.join(GRANULARITIES)}, not {granularity!r}")
    if (granularity == "group") != (group_size is not None):
        raise UnsupportedLayerError(
            f"group_size={group_size!r} with granularity {granularity!r}; give it for 'group' and only there"
        )
    if len(shape) < 2 or any(size < 1 for size in shape):
        raise UnsupportedLayerError(f"a packed weight has two or more non-empty dimensions, not {list(shape)}")
    if group_size is None:
        return (1,) if granularity == "tensor" else (shape[0],)
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise UnsupportedLayerError(f"group_size must be a positive integer, not {group_size!r}")
    return (shape[0], -(-math.prod(shape[1:]) // group_size))


def check_parts(
    tensors: Mapping[str, Tensor],
    shape: Sequence[int],
    bits: int,
    granularity: str,
    group_size: int | None,
    dtype: torch.dtype,
    error: type[Exception],
) -> None:
    """Refuse parts that do not make a packed weight.

    Args:
        tensors: codes, scale and zero_point; their values are not looked at on the meta device.
        shape: Shape of the weight.
        bits: Bits per code.
        granularity: "tensor", "channel" or "group".
        group_size: Inputs per group, for "group" alone.
        dtype: The dtype that the weight is to appear to have.
        error: What a tensor of the wrong dtype, shape or device raises.

    Raises:
        UnsupportedLayerError: No packed weight has that shape, bits, granularity, group size or dtype.
        NonFiniteError: NaN or infinity in the scale or zero point.
    """
    bitpack.check_bits(bits)
    if not dtype.is_floating_point:
        raise UnsupportedLayerError(f"a packed weight appears as a floating dtype, not {dtype}")
    qparams = qparam_shape(shape, granularity, group_size)
    expected = {
        "codes": (torch.uint8, (bitpack.packed_size(math.prod(shape), bits),)),
        "scale": (torch.float32, qparams),
        "zero_point": (torch.float32, qparams),
    }
    for name, (inner_dtype, inner_shape) in expected.items():
        tensor = tensors[name]
        if tensor.dtype != inner_dtype or tensor.shape != inner_shape:
            raise error(
                f"{name} of a {bits}-bit weight {list(shape)} with granularity {granularity!r} must be "
                f"{inner_dtype} {list(inner_shape)}, not {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != tensors["codes"].device:
            raise error(f"{name} is on {tensor.device} but codes are on {tensors['codes'].device}; move one of them")
        if name != "codes" and tensor.device.type != "meta" and not bool(tensor.isfinite().all()):
            raise NonFiniteError(f"{name} of a packed weight {list(shape)} has NaN or infinite values")
