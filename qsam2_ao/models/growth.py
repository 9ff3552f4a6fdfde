"""Widen a SAM2: start a model with more channels from the trained weights of a narrower one.

Every channel of the wide model is a copy of one of the narrow model, and what reads copies is divided by how many there
are (Net2WiderNet, Chen et al. 2016). Channels are copied in pairs, so that the sines and cosines of position encodings
and of rotary attention stay together and keep their frequencies. Twice as wide, the function is the same up to the
frequencies of sine encodings; in between it is near, because normalisation layers then see some channels twice.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def grow(narrow: nn.Module, wide: nn.Module, *, noise: float = 0.05, seed: int = 0) -> None:
    """Fill a wide model with the weights of a narrow one of the same layout, in place.

    Args:
        narrow: The trained model.
        wide: A model with the same tensors, some of their dimensions larger.
        noise: Standard deviation of what is added to weight matrices so that copies part, as a fraction of each
            tensor's own.
        seed: Seed of the noise.

    Raises:
        ValueError: A tensor is missing, or has another number of dimensions or fewer channels.

    Example:
        >>> grow(load_embedded(SAM2Train), build_embedded(SAM2Train, config=EMBEDDED_256_CONFIG))
    """
    old, new = narrow.state_dict(), wide.state_dict()
    if old.keys() != new.keys():
        raise ValueError(f"the models differ in {sorted(old.keys() ^ new.keys())[:5]}")
    queries = {
        f"{name}.q_proj.{kind}"
        for name, module in wide.named_modules()
        if isinstance(getattr(module, "q_proj", None), nn.Linear)
        for kind in ("weight", "bias")
    }
    products = {name for name in new if "output_hypernetworks_mlps" in name and ".layers.2." in name}
    transposed = {f"{name}.weight" for name, module in wide.named_modules() if isinstance(module, nn.ConvTranspose2d)}
    depthwise = {
        f"{name}.weight" for name, module in wide.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    generator = torch.Generator().manual_seed(seed)
    grown = {}
    for name, value in old.items():
        inputs = 0 if name in transposed else 1
        is_weight = name.endswith("weight") and value.ndim >= 2 and name not in depthwise
        # An embedding's rows, as those of learned tokens, are read by nothing.
        is_weight = is_weight and not isinstance(wide.get_submodule(name.rpartition(".")[0]), nn.Embedding)
        larger = _spread(value, new[name].shape, inputs if is_weight else None)
        if name in queries or name in products:
            # The product with a partner whose channels were copied too must not grow with their number.
            index = _sources(value.shape[0], larger.shape[0])
            count = torch.bincount(index, minlength=value.shape[0])[index].to(value.dtype)
            scale = 1 / count * (math.sqrt(larger.shape[0] / value.shape[0]) if name in queries else 1)
            larger = larger * scale.view(-1, *[1] * (larger.ndim - 1))
        if name.endswith(("attn.qkv.weight", "attn.qkv.bias")):
            index = _sources(value.shape[0], larger.shape[0])
            count = torch.bincount(index, minlength=value.shape[0])[index].to(value.dtype)
            scale = math.sqrt(larger.shape[0] / value.shape[0]) / count
            scale[larger.shape[0] // 3 :] = 1  # keys and values are as they were
            larger = larger * scale.view(-1, *[1] * (larger.ndim - 1))
        if is_weight and noise and larger.shape != value.shape:
            larger = larger + noise * larger.std() * torch.randn(larger.shape, generator=generator)
        grown[name] = larger
    wide.load_state_dict(grown)


def _sources(old: int, new: int) -> Tensor:
    """For every channel of the wide model, the channel of the narrow one it copies: whole pairs at a time."""
    if new < old:
        raise ValueError(f"cannot grow {old} channels to {new}")
    if old % 2 or new % 2:
        return torch.arange(new) * old // new
    channel = torch.arange(new)
    return 2 * (channel // 2 * (old // 2) // (new // 2)) + channel % 2


def _spread(value: Tensor, shape: torch.Size, inputs: int | None) -> Tensor:
    """Copy channels along every dimension that grew, dividing along that of the inputs."""
    if value.ndim != len(shape):
        raise ValueError(f"cannot grow {list(value.shape)} to {list(shape)}")
    for dimension, size in enumerate(shape):
        old = value.shape[dimension]
        if old == size:
            continue
        index = _sources(old, size)
        value = value.index_select(dimension, index)
        if dimension == inputs:
            count = torch.bincount(index, minlength=old)[index].to(value.dtype)
            value = value / count.view(*[-1 if d == dimension else 1 for d in range(value.ndim)])
    return value
