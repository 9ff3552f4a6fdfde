"""What all targets ask of a layer that they run as sums of integer products: of its input's codes and its weight's."""

from __future__ import annotations

from torch import nn

from .inputs import ActivationQuantizer
from .kernels.codes import CodeGrid
from .packed import PackedIntxTensor
from .portable import why_not_packed


def why_no_integer_products(
    module: nn.Module, packed: PackedIntxTensor, quantizer: ActivationQuantizer | None, runner: str
) -> str | None:
    """Why a layer is no sum of products of unsigned 8-bit codes and integer weights, with one scale an output.

    Args:
        module: The float layer.
        packed: Its weight.
        quantizer: Of its input; None if that stays float.
        runner: What would run it, as in "the int8 kernels".

    Returns:
        None if it is, else the reason as a sentence.

    Example:
        >>> why_no_integer_products(linear, packed, None, "the int8 kernels")
        'Its input is not quantized, and the int8 kernels multiply codes.'
    """
    if (reason := why_not_packed(module, packed)) is not None:
        return reason
    if quantizer is None:
        return f"Its input is not quantized, and {runner} multiply codes."
    if packed.group_size is not None:
        return f"Its weight has scales per group, and {runner} sum whole rows."
    grid = CodeGrid.of(quantizer)
    if grid.high > 255 or not grid.zero_point.is_integer():
        return f"Its input is {grid}, and {runner} take codes of up to 8 bits with an integer zero point."
    return None


def why_too_large(packed: PackedIntxTensor, largest: int) -> str | None:
    """Why the sums of a layer cannot be taken, if they may reach ``largest``; None if they fit 32 bits."""
    if largest < 2**31:
        return None
    return f"Its sums of {packed.shape.numel() // packed.shape[0]} products may reach {largest}, beyond 32 bits."


def pair_may_saturate(weight: int, code: int) -> bool:
    """Whether two products may leave the 16 bits that x86 CPUs without VNNI add them in.

    Args:
        weight: Largest magnitude of a weight's values.
        code: Largest code of an input.

    Example:
        >>> pair_may_saturate(127, 255), pair_may_saturate(127, 127)
        (True, False)
    """
    return 2 * weight * code >= 2**15
