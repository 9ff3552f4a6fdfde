"""Where torch.ao's conversion would go wrong with a quantizer's range, without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import QConfigError

if TYPE_CHECKING:
    from .lsc import LSCFakeQuantize

_CLIPPING = "torch.ao.nn.quantized."


def refuse_wrong_conversion(quantizer: LSCFakeQuantize, caller: str) -> None:
    """Refuse a conversion that would give other values than the quantizer.

    torch.ao rounds weights and inputs to int8 and uint8 codes with the scale and zero point that it asks for. Its graph
    mode then clips at the ends of those types, where grids of fewer bits end earlier; its eager mode clips weights at
    the quantizer's own ends. The mid-rise grid, whose codes are the odd ones, needs weights that lie on it already.

    Args:
        quantizer: The quantizer that is asked.
        caller: Name of the Python module that asks.

    Raises:
        QConfigError: torch.ao asks, and would be wrong.
    """
    if not caller.startswith("torch.ao."):
        return
    if quantizer.granularity == "group":
        raise QConfigError(
            f"{quantizer.who}: torch.ao has no scales per group of inputs; choose granularity='channel' or 'tensor'"
        )
    if not quantizer.is_weight:
        if quantizer.bits < 8:
            raise QConfigError(
                f"{quantizer.who}: torch.ao's conversion does not clip inputs to {quantizer.bits} bits; choose 8-bit "
                "activations, or torch.ao's decomposed reference"
            )
        return
    rounds_right = quantizer.grid != "midrise" and (quantizer.bits == 8 or caller.startswith(_CLIPPING))
    if not (quantizer.snapped or rounds_right):
        raise QConfigError(
            f"{quantizer.who}: torch.ao would round the float weight anew, and miss its {quantizer.bits}-bit "
            f"grid {quantizer.grid!r}; call qsam2_ao.snap_weights(model) right before it, or prepare and convert with "
            "backend_config=qsam2_backend_config(), or choose 8 bits with grid='symmetric'"
        )
