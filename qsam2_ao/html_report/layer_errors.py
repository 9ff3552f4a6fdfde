"""Where a quantized model loses accuracy: each layer's error by itself, and what has added up until it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ..calibration.exercise import exercise
from ..calibration.images import CalibrationData, images_at_once, load_images
from ..deploy.inputs import ActivationQuantizer
from ..deploy.record import LayerRecord
from ..errors import QSAM2Error
from ..evaluation.agreement import sqnr
from ..quantizers.sampling import even_sample
from ..reporting.coverage import deployed_path
from ..stage import stage_of

Clip = tuple[float, float]


@dataclass(frozen=True)
class LayerError:
    """One quantized layer.

    Attributes:
        name: Path in the model.
        region: Region of SAM2.
        bits: Of the weights.
        activation_bits: Of the input; None in float.
        own: Signal-to-quantization-noise ratio of its output in decibels where its input is the float model's: what
            this layer adds. Infinite where nothing is lost.
        so_far: The same in the quantized model, where the layers before it are quantized too; None where the two models
            did not call it equally often.
        inputs: A sample of the float model's input, float32.
        clip: The smallest and the largest value that the input's grid has; None in float.
        clipped: Share of the sample that is farther outside than rounding moves any value, 0 to 1.
    """

    name: str
    region: str
    bits: int
    activation_bits: int | None
    own: float
    so_far: float | None
    inputs: Tensor
    clip: Clip | None
    clipped: float


@dataclass
class _Seen:
    """Samples from every call of a layer: of its input, of its output, and of what the quantized one makes of it."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    alone: list[Tensor]


def layer_errors(
    quantized: SAM2Base, reference: SAM2Base, images: CalibrationData, *, max_images: int = 4
) -> list[LayerError]:
    """Segment and track in some images with both models, and compare every quantized layer.

    Args:
        quantized: From ``convert_qsam2``, or loaded with the target "packed".
        reference: The float model that it was made from.
        images: As ``prepare_qsam2`` takes them.
        max_images: How many of them.

    Returns:
        The layers that ran, in the order of the model.

    Raises:
        QSAM2Error: The models don't belong together, or the first is not quantized.
        CalibrationError: Unusable images.

    Example:
        >>> worst = min(layer_errors(quantized, model, images), key=lambda layer: layer.own)
        >>> worst.own > 0
        True
    """
    records = stage_of(quantized).layers
    if not records:
        raise QSAM2Error("the layers of a quantized model are compared with the float one's, and this one is in float")
    originals = {record.name: float_layer(reference, record) for record in records}
    chosen = load_images(images, max_images=max_images)
    together = images_at_once(reference)
    seen: defaultdict[str, _Seen] = defaultdict(lambda: _Seen([], [], []))
    with ExitStack() as hooks:
        for record in records:
            hooks.enter_context(_hooked(originals[record.name], _watch(quantized, record, seen[record.name])))
        boxes = exercise(reference, chosen, batch_size=together)
    outputs: defaultdict[str, list[Tensor]] = defaultdict(list)
    with ExitStack() as hooks:
        for record in records:
            module = quantized.get_submodule(deployed_path(quantized, record))
            hooks.enter_context(_hooked(module, _keep(outputs[record.name])))
        exercise(quantized, chosen, batch_size=together, boxes=boxes)
    return [
        _error(record, seen[record.name], outputs[record.name], _input_quantizer(quantized, record))
        for record in records
        if seen[record.name].outputs
    ]


def float_layer(reference: SAM2Base, record: LayerRecord) -> nn.Module:
    """The layer of the float model that a quantized one was made from.

    Raises:
        QSAM2Error: There is none of its shape.
    """
    try:
        layer = reference.get_submodule(record.name)
        fits = tuple(layer.weight.shape) == record.shape
    except AttributeError:
        fits = False
    if not fits:
        raise QSAM2Error(
            f"the float model has no layer {record.name} of {'x'.join(map(str, record.shape))}: name the model that "
            "was quantized"
        )
    return layer


def _input_quantizer(quantized: SAM2Base, record: LayerRecord) -> ActivationQuantizer | None:
    if record.activation is None:
        return None
    found = quantized.get_submodule(record.part).get_submodule(record.activation)
    assert isinstance(found, ActivationQuantizer)
    return found


Hook = Callable[[Any, tuple[Any, ...], Any], None]


@contextmanager
def _hooked(module: nn.Module, hook: Hook) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _watch(quantized: SAM2Base, record: LayerRecord, seen: _Seen) -> Hook:
    layer = quantized.get_submodule(deployed_path(quantized, record))
    quantizer = _input_quantizer(quantized, record)

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        x = arguments[0]
        seen.inputs.append(even_sample(x))
        seen.outputs.append(even_sample(output))
        seen.alone.append(even_sample(layer(x if quantizer is None else quantizer(x))))

    return hook


def _keep(outputs: list[Tensor]) -> Hook:
    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        outputs.append(even_sample(output))

    return hook


def _error(
    record: LayerRecord, seen: _Seen, outputs: list[Tensor], quantizer: ActivationQuantizer | None
) -> LayerError:
    before, inputs = torch.cat(seen.outputs), torch.cat(seen.inputs)
    alike = [x.shape for x in outputs] == [x.shape for x in seen.outputs]
    clip = None if quantizer is None else input_clip(quantizer)
    outside = 0.0
    if clip is not None and quantizer is not None:
        half = float(quantizer.scale) / 2  # nearer than that to the last code, a value is rounded as any other is
        outside = float(((inputs < clip[0] - half) | (inputs > clip[1] + half)).float().mean())
    return LayerError(
        name=record.name,
        region=record.region,
        bits=record.bits,
        activation_bits=record.activation_bits,
        own=sqnr(before, torch.cat(seen.alone)),
        so_far=sqnr(before, torch.cat(outputs)) if alike else None,
        inputs=even_sample(inputs).cpu(),
        clip=clip,
        clipped=outside,
    )


def input_clip(quantizer: ActivationQuantizer) -> Clip:
    """The smallest and the largest value that a layer's input can have."""
    scale, zero_point = float(quantizer.scale), float(quantizer.zero_point)
    return (quantizer.quant_min - zero_point) * scale, (quantizer.quant_max - zero_point) * scale
