"""Regions that a training leaves as they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from ..graph import check_regions
from ..graph.paths import is_inside
from ..graph.regions import region_of
from ..quantizers.base import QuantizerBase
from .observers import has_range, torch_ao_quantizers


@contextmanager
def frozen(model: nn.Module, regions: Iterable[str]) -> Iterator[None]:
    """Keep the parameters of regions, and the ranges of their quantizers, from changing inside the block.

    Args:
        model: A SAM2, float or prepared.
        regions: Names of regions.

    Raises:
        QConfigError: An unknown region.

    Example:
        >>> with frozen(prepared, ("image_encoder",)):
        ...     result = train_qat(prepared, steps=1, batches=lambda first: [batch])
    """
    wanted = set(regions)
    check_regions(wanted)

    def in_them(name: str) -> bool:
        # Of the decoder also what is never quantized: its tokens, and what makes masks larger.
        return region_of(name) in wanted or ("mask_decoder" in wanted and is_inside(name, "sam_mask_decoder"))

    parameters = [p for name, p in model.named_parameters() if p.requires_grad and in_them(name)]
    own = [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizerBase)]
    others = [(name, module) for name, module in torch_ao_quantizers(model) if has_range(module)]
    quantizers = [module for name, module in own + others if in_them(name) and bool(module.observer_enabled)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    for quantizer in quantizers:
        quantizer.disable_observer()
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for quantizer in quantizers:
            quantizer.enable_observer()
