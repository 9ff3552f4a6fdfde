"""Equalisation: move scale between layers so that no channel stands out, in the weights or in the activations.

A LayerNorm's gain and the columns that read it can hide a factor each from the other. A large column with small
inputs costs every other weight of its rows their resolution. Rescaling (see :mod:`.scale_groups`) changes nothing in
float, and with s_j = sqrt(std(x_j) / rms(w_j)) both sides are as even as they can be made together.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from .exercise import Model, in_float32
from .images import CalibrationData, load_images
from .observe import observe_inputs
from .scale_groups import ScaleGroup, rescale, scale_groups

# A channel that is never active, or never read, has no say in the scale.
_SILENT = 1e-6


def equalize_qsam2(
    model: Model,
    calibration_data: CalibrationData,
    *,
    max_images: int = 50,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """A copy of a float SAM2 that computes the same and is easier to quantize.

    For a linear layer with per-row weight scales and a per-tensor input scale, the rounding error of the output
    grows with (sum_j w_j^2 s_j^2) (sum_j x_j^2 / s_j^2), for weights and inputs alike; by Cauchy and Schwarz
    s_j^2 = rms(x_j) / rms(w_j) makes it smallest. What rounding does to the mean of the output, biases make up for, so
    x_j is about its mean: a channel that is large all the time and hardly varies is not worth the resolution of its
    columns' neighbours. It is SmoothQuant's scale (arXiv 2211.10438) with strength 1/2
    and deviations in place of maxima, applied wherever
    :func:`~qsam2_ao.calibration.scale_groups.scale_groups` allows.

    Args:
        model: A float ``SAM2Base`` or a subclass; it is not modified. Weights in another dtype than float32 are cast
            first.
        calibration_data: Images, see :class:`~qsam2_ao.calibration.images.CalibrationImages`.
        max_images: Number of images to use at most.
        batch_size: Images per forward pass.
        seed: Of the choice of images and of the prompts.
        progress: Show a progress bar.

    Returns:
        The copy in float32, of the model's class; its outputs differ from the model's by rounding alone.

    Raises:
        CalibrationError: Empty or unusable images, or nothing in the model can be rescaled.

    Example:
        >>> prepared = prepare_qsam2(equalize_qsam2(model, "photos/"), "w2a4")
    """
    model = in_float32(model)
    groups = scale_groups(model)
    if not groups:
        raise CalibrationError(f"{type(model).__name__} has no layers that can be equalized; give a float SAM2 model")
    images = load_images(calibration_data, max_images=max_images, seed=seed)
    observers = observe_inputs(
        model,
        {group.consumers[0]: model.get_submodule(group.consumers[0]) for group in groups},
        images,
        batch_size=batch_size,
        seed=seed,
        progress="equalizing" if progress else None,
    )
    equalized = copy.deepcopy(model)
    # A layer's rows may be rescaled as a producer and its columns as a consumer; each group's scale is made of the
    # weights as the groups before it left them, which changes the rows' sizes and not the columns' shares.
    for group in groups:
        energy = observers[group.consumers[0]].statistics().centred.diagonal()
        rescale(equalized, group, balanced_scale(equalized, group, energy))
    return equalized


def balanced_scale(model: nn.Module, group: ScaleGroup, energy: Tensor) -> Tensor:
    """The scale of a group's channels that balances inputs and weights; its geometric mean is 1.

    Args:
        model: The model.
        group: The group.
        energy: Sum of squares of each channel about its mean over the calibration data, [channels].

    Returns:
        Positive factors, float64, [channels].
    """
    columns = torch.cat([_rows(model.get_submodule(name)) for name in group.consumers])
    return balance(energy.double().sqrt(), columns.double().square().sum(0).sqrt())


def balance(inputs: Tensor, weights: Tensor) -> Tensor:
    """sqrt(inputs / weights) per channel with geometric mean 1; 1 for channels that are silent on either side.

    Args:
        inputs: Magnitude of each channel's inputs, [channels], not negative.
        weights: Magnitude of each channel's column, [channels], not negative.
    """
    usable = (inputs > _SILENT * inputs.max()) & (weights > _SILENT * weights.max())
    if not bool(usable.any()):
        return torch.ones_like(inputs)
    logs = torch.where(usable, (inputs / weights).clamp_min(torch.finfo(inputs.dtype).tiny).log() / 2, 0.0)
    mean = logs.sum() / usable.sum()
    return torch.where(usable, (logs - mean).exp(), 1.0)


def _rows(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().reshape(weight.shape[0], -1)
