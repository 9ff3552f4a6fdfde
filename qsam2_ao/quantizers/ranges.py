"""What every quantizer with a range of its own has in common, whatever the method."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase


@runtime_checkable
class RangedFakeQuantize(Protocol):
    """A fake-quantizer whose range is started: from the weight, or from calibration data.

    LSC and the rivals are such; torch.ao's own quantizers are not, they observe by themselves.
    """

    name: str
    """Of the layer, for error messages."""

    @property
    def is_initialized(self) -> bool:
        """Whether the range has been started."""

    def initialize(self, x: Tensor) -> None:
        """Size and start the range from a weight or a batch of an activation."""

    def calibrating(self) -> AbstractContextManager[None]:
        """Collect what an activation's range starts from, passing the input through, in any mode."""


@contextmanager
def calibrating(model: nn.Module) -> Iterator[None]:
    """Start the input ranges of all quantizers of a model from what they see in the block, in any mode.

    Inputs are not quantized meanwhile, weights are. A quantizer that sees nothing is left as it was.

    Args:
        model: A prepared model, whatever it was prepared by.

    Raises:
        NonFiniteError: An input held NaN or infinity, naming its quantizer.

    Example:
        >>> with calibrating(prepared), torch.no_grad():
        ...     for x in batches:
        ...         features = prepared.forward_image(x)
    """
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, RangedFakeQuantize) and not getattr(module, "is_weight", False):
                stack.enter_context(module.calibrating())
        yield


def range_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learned ranges of every quantizer: LSC's alphas, a rival's scales, offsets or clips.

    They have a learning rate of their own, and no weight decay. Start the quantizers first.

    Args:
        model: A prepared model.

    Returns:
        Each quantizer's own parameters, in the order of the model's modules; all of them are ranges.

    Example:
        >>> ranges = {id(parameter) for parameter in range_parameters(prepared)}
    """
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantizeBase)]
    return [parameter for quantizer in quantizers for parameter in quantizer.parameters(recurse=False)]
