"""torch.ao's own fake-quantizers: their observers look on in eval mode too, and their ranges begin at infinity."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

from ..quantizers.base import QuantizerBase


def torch_ao_quantizers(model: nn.Module) -> Iterator[tuple[str, FakeQuantize]]:
    """The fake-quantizers of a model that are torch.ao's own, by name."""
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantize) and not isinstance(module, QuantizerBase):
            yield name, module


def observed_state(model: nn.Module) -> frozenset[str]:
    """The names of what they observe in a model's state: an average over time of it may be infinite or of no size."""
    return frozenset(
        f"{name}.{buffer}" for name, module in torch_ao_quantizers(model) for buffer, _ in module.named_buffers()
    )


def has_range(quantizer: FakeQuantize) -> bool:
    """Whether one has seen data; without, it takes its first range from what it sees next."""
    seen = getattr(quantizer.activation_post_process, "min_val", None)
    return isinstance(seen, Tensor) and seen.numel() > 0 and bool(seen.isfinite().all())
