"""The embedded model as trained, and with outliers in its weights and activations."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ...calibration.scale_groups import ScaleGroup, rescale, scale_groups
from ...errors import QConfigError
from ...graph.paths import is_inside
from ...models.embedded import load_embedded


@dataclass(frozen=True)
class HeavyTails:
    """Outlier weights that change nothing in float.

    A seeded share of the channels behind each LayerNorm, and of the attention's values, of the Hiera trunk is divided
    by a random factor; the columns that read it are multiplied by the factor. One channel of the activations before
    each MLP of the trunk can get a constant on top, as the massive activations of vision transformers are; the biases
    behind it take it back. (Behind a block's first LayerNorm windows are padded with zeros: not exact there.)

    Attributes:
        share: Share of the channels.
        smallest: Smallest factor.
        largest: Largest factor; uniform between the two in the logarithm.
        seed: Seed of channels and factors.
        offset: The constant; the other channels have a standard deviation of about one.
    """

    share: float = 0.06
    smallest: float = 4.0
    largest: float = 24.0
    seed: int = 0
    offset: float = 0.0

    def apply(self, model: SAM2Base) -> SAM2Base:
        """A copy of a float SAM2 with such weights; its outputs differ from the model's by rounding alone."""
        changed = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(self.seed)
        low, high = torch.tensor([self.smallest, self.largest], dtype=torch.float64).log()
        for group in scale_groups(changed):
            if not is_inside(group.producer, "image_encoder.trunk"):
                continue
            factors = torch.ones(group.channels, dtype=torch.float64)
            count = max(1, round(self.share * group.channels))
            chosen = torch.randperm(group.channels, generator=generator)[:count]
            random = torch.rand(count, generator=generator, dtype=torch.float64)
            factors[chosen] = (low + (high - low) * random).exp()
            rescale(changed, group, factors)
            if self.offset and group.producer.endswith("norm2"):
                _add_offset(changed, group, int(torch.randint(group.channels, (1,), generator=generator)), self.offset)
        return changed


@torch.no_grad()
def _add_offset(model: SAM2Base, group: ScaleGroup, channel: int, offset: float) -> None:
    model.get_parameter(f"{group.producer}.bias")[channel] += offset
    for consumer in group.consumers:
        column = model.get_parameter(f"{consumer}.weight")[:, channel]
        model.get_parameter(f"{consumer}.bias").sub_(offset * column)


#: Name of a weight setting -> its outliers; None is the model as trained.
MODELS: dict[str, HeavyTails | None] = {
    "plain": None,
    "heavy-tailed": HeavyTails(),
    "outliers": HeavyTails(offset=30.0),
    # How much hangs on the choice of outliers.
    "heavy-tailed seed 1": HeavyTails(seed=1),
    "heavy-tailed seed 2": HeavyTails(seed=2),
    "heavy-tailed 2%": HeavyTails(share=0.02),
    "heavy-tailed 15%": HeavyTails(share=0.15),
    "heavy-tailed 2-8": HeavyTails(smallest=2.0, largest=8.0),
    "heavy-tailed 8-64": HeavyTails(smallest=8.0, largest=64.0),
}


def build_model(name: str, embedded: str = "embedded") -> SAM2Base:
    """An embedded model in a weight setting, as a ``SAM2VideoPredictor`` in eval mode.

    Args:
        name: One of ``MODELS``.
        embedded: Which embedded model.

    Raises:
        QConfigError: An unknown name.

    Example:
        >>> model = build_model("heavy-tailed")
    """
    if name not in MODELS:
        raise QConfigError(f"unknown model {name!r}; the benchmark's models are {', '.join(MODELS)}")
    model, tails = load_embedded(name=embedded), MODELS[name]
    return model if tails is None else tails.apply(model)


@dataclass(frozen=True)
class WeightShape:
    """How heavy the tails of one layer's weight are.

    Attributes:
        layer: Path of the layer.
        kurtosis: Excess kurtosis, 0 for a normal distribution.
        max_over_std: Largest magnitude in standard deviations.
    """

    layer: str
    kurtosis: float
    max_over_std: float


def weight_shapes(model: nn.Module) -> list[WeightShape]:
    """Kurtosis and largest magnitude of every linear layer and convolution of the image encoder."""
    return [
        WeightShape(name, *_shape(module.weight))
        for name, module in model.named_modules()
        if is_inside(name, "image_encoder") and isinstance(module, (nn.Linear, nn.Conv2d))
    ]


def _shape(weight: Tensor) -> tuple[float, float]:
    centred = weight.detach().double() - weight.detach().double().mean()
    std = centred.square().mean().sqrt()
    return float((centred / std).pow(4).mean()) - 3, float(centred.abs().max() / std)
