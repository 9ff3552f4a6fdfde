"""Which parameters of a prepared model are clipping ranges: they have a learning rate of their own, and no decay."""

from __future__ import annotations

from torch import nn

from .lsc import LSCFakeQuantize


def range_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learned ranges of every quantizer, LSC's or a rival's, in the order of the model's modules.

    Args:
        model: A prepared model.

    Example:
        >>> ranges = {id(parameter) for parameter in range_parameters(prepared)}
    """
    found = []
    for module in model.modules():
        names = ("log_alpha",) if isinstance(module, LSCFakeQuantize) else getattr(module, "ranges", ())
        found += [getattr(module, name) for name in names]
    return found
