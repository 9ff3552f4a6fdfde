"""What quantizing one layer alone costs, layer by layer and bit-width by bit-width."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, Protocol, TypeAlias

from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from ..calibration import load_images
from ..calibration.calibrate import is_calibratable
from ..calibration.exercise import in_float32
from ..calibration.gram import InputStatistics
from ..calibration.images import CalibrationData, CalibrationImages, images_at_once
from ..calibration.observe import observed_layers
from ..data.types import VideoSequence
from ..errors import QConfigError
from ..evaluation import evaluate_image, evaluate_video, image_samples
from ..graph import check_regions
from ..progress import tqdm
from ..spelling import did_you_mean
from ..threads import one_thread_if_small
from .layers import QuantizableLayer, quantizable_layers, quantized_layer, replaced_parameters
from .outputs import OutputError

BITS = (2, 3, 4, 8)
METRICS = ("sqnr", "jf")
Remember: TypeAlias = Callable[[str, Callable[[], Any]], Any]
"""Gives the JSON-able result of a named step: computed now, or by an earlier run. ``Workspace.result`` is one."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer costs at one bit-width.

    Attributes:
        layer: Path of the layer in the model.
        region: Its region.
        bits: Bits of its weight.
        bytes: What its weight takes packed.
        loss: What quantizing it alone costs; losses of different layers add up as long as they are small. For the
            metric "sqnr" the mean relative squared error of the outputs, for "jf" the mean loss of J&F and box mIoU
            in percent, which may be negative.
        figures: What the loss is made of: relative squared error by output, or "jf" and "miou" in percent.
    """

    layer: str
    region: str
    bits: int
    bytes: int
    loss: float
    figures: dict[str, float]


@dataclass(frozen=True)
class Sensitivity:
    """What every layer costs at every bit-width.

    Attributes:
        metric: "sqnr" or "jf".
        layers: The layers, in the order of ``quantizable_layers``.
        records: Bit-width by bit-width within layer by layer.
        settings: How it was measured.
    """

    metric: str
    layers: tuple[QuantizableLayer, ...]
    records: tuple[LayerSensitivity, ...]
    settings: dict[str, Any]

    @property
    def bits(self) -> tuple[int, ...]:
        """The bit-widths, from few to many."""
        return tuple(sorted({record.bits for record in self.records}))

    def loss(self, layer: str, bits: int) -> float:
        """The loss of a layer at a bit-width; KeyError for what was not measured."""
        for record in self.records:
            if record.layer == layer and record.bits == bits:
                return record.loss
        raise KeyError((layer, bits))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; SQNR in dB beside every relative squared error, None where it is infinite."""
        records = []
        for record in self.records:
            values = asdict(record)
            if self.metric == "sqnr":
                values["sqnr_db"] = decibels(record.loss)
            records.append(values)
        return {"metric": self.metric, "settings": self.settings, "records": records}


def decibels(relative_error: float) -> float | None:
    """Signal-to-quantization-noise ratio of a relative squared error; None where there is no noise."""
    return -10 * math.log10(relative_error) if relative_error > 0 else None


def measure_sensitivity(
    model: SAM2Base,
    calibration_data: CalibrationData,
    *,
    bits: Sequence[int] = BITS,
    layers: Iterable[str] | None = None,
    metric: str = "sqnr",
    sequences: Sequence[VideoSequence] = (),
    vrc: str | float | None = "auto",
    vrc_regions: tuple[str, ...] = ("image_encoder",),
    rounding: str = "nearest",
    max_images: int = 8,
    seed: int = 0,
    progress: bool = True,
    remember: Remember | None = None,
    remembered: Collection[str] = (),
) -> Sensitivity:
    """Quantize one layer at a time, weights alone, and measure what that changes.

    The layer is what ``prepare_qsam2`` with the same settings would start training with: calibrated (VRC) in
    ``vrc_regions``, per output channel, on LSC's default grid in the range of the least error.

    Args:
        model: A float model of the ``SAM2Base`` family. It is not changed. Weights in another dtype than float32 are
            cast first.
        calibration_data: Images, as ``prepare_qsam2`` takes them. With the metric "sqnr" the outputs are compared on
            them too.
        bits: Bit-widths, 2 to 8.
        layers: Paths of the layers to measure; None for all that ``prepare_qsam2`` would quantize.
        metric: "sqnr" compares the outputs of all regions with those of the float model; "jf" tracks ``sequences``,
            which is slow and needs many of them to tell small losses from noise.
        sequences: Videos with masks, for "jf".
        vrc: As for ``prepare_qsam2``, likewise ``vrc_regions`` and ``rounding``.
        vrc_regions: Regions whose linear layers are calibrated.
        rounding: "nearest" or "gptq".
        max_images: How many of the images are used, a seeded random choice.
        seed: Seed of that choice and of the prompts.
        progress: Show a progress bar.
        remember: Keeps finished layers, such as the ``result`` method of the command line's ``Workspace``.
        remembered: Layers that it has: nothing is computed for them.

    Returns:
        One record per layer and bit-width, the same on every run.

    Raises:
        GraphTraceError: ``model`` is no SAM2, or is quantized already.
        QConfigError: A layer, bit-width, metric or rounding that does not exist, or "jf" without videos.
        CalibrationError: Empty or unusable images.

    Example:
        >>> layer = "memory_attention.layers.0.linear1"
        >>> sensitivity = measure_sensitivity(model, "photos/", layers=[layer], bits=(2, 4))
        >>> sensitivity.loss(layer, 2) > sensitivity.loss(layer, 4)
        True
    """
    check_regions(vrc_regions)
    model = in_float32(model)
    chosen = _chosen(quantizable_layers(model), layers)
    if not bits or not all(isinstance(b, int) and 2 <= b <= 8 for b in bits):
        raise QConfigError(f"bits must be among 2 to 8, got {list(bits)}")
    _check_metric(metric)
    images = load_images(calibration_data, max_images=max_images, seed=seed)
    known = [name for name in chosen if name in remembered and remember is not None]
    unknown = {name: layer for name, layer in chosen.items() if name not in known}
    measure = _metric(metric, copy.deepcopy(model), images, sequences, seed) if unknown else _unasked
    widths = tuple(sorted(set(bits)))
    records: list[LayerSensitivity] = []
    with (
        one_thread_if_small(model),
        tqdm(total=len(chosen) * len(widths), desc="sensitivity", unit="weight", disable=not progress) as bar,
    ):
        for name, inputs in chain(((name, None) for name in known), _with_inputs(model, unknown, images, seed)):
            layer, module = chosen[name], model.get_submodule(name)
            quantize = partial(
                quantized_layer,
                name,
                module,
                inputs=inputs,
                vrc=vrc if layer.region in vrc_regions else None,
                rounding=rounding,
            )
            compute = partial(_measure_layer, layer, widths, quantize, measure)
            results = compute() if remember is None else remember(name, compute)
            records += [
                LayerSensitivity(name, layer.region, width, layer.packed_bytes(width), loss, figures)
                for width, (loss, figures) in zip(widths, results, strict=True)
            ]
            bar.update(len(widths))
    order = list(chosen)
    records.sort(key=lambda record: (order.index(record.layer), record.bits))
    settings = {
        "images": len(images),
        "videos": len(sequences) if metric == "jf" else 0,
        "vrc": vrc,
        "vrc_regions": list(vrc_regions),
        "rounding": rounding,
        "seed": seed,
    }
    return Sensitivity(metric, tuple(chosen.values()), tuple(records), settings)


def _measure_layer(
    layer: QuantizableLayer, widths: Sequence[int], quantize: Callable[[int], nn.Module], measure: _Metric
) -> list[tuple[float, dict[str, float]]]:
    return [measure(layer, quantize(width)) for width in widths]


def _chosen(available: dict[str, QuantizableLayer], names: Iterable[str] | None) -> dict[str, QuantizableLayer]:
    if names is None:
        return available
    wanted = list(names)
    if unknown := [name for name in wanted if name not in available]:
        raise QConfigError(
            f"the model has no quantizable layer {unknown[0]!r}; see `qsam2 inspect` for their names"
            + did_you_mean(unknown[0], available)
        )
    if not wanted:
        raise QConfigError("there are no layers to measure")
    return {name: layer for name, layer in available.items() if name in wanted}


def _with_inputs(
    model: Any, layers: dict[str, QuantizableLayer], images: CalibrationImages, seed: int
) -> Iterator[tuple[str, InputStatistics | None]]:
    """The layers with the statistics of their inputs, which ``prepare_qsam2`` would collect in the same way."""
    modules = {name: model.get_submodule(name) for name in layers}
    observed = {name: module for name, module in modules.items() if is_calibratable(module)}
    yield from ((name, None) for name in layers if name not in observed)
    yield from observed_layers(model, observed, images, batch_size=images_at_once(model), seed=seed, progress=False)


class _Metric(Protocol):
    """What a quantized layer costs, and what that is made of."""

    def __call__(self, layer: QuantizableLayer, quantized: nn.Module) -> tuple[float, dict[str, float]]: ...


def _check_metric(name: str) -> None:
    if name not in METRICS:
        raise QConfigError(f"unknown metric {name!r}: choose one of {', '.join(METRICS)}")


def _unasked(layer: QuantizableLayer, quantized: nn.Module) -> tuple[float, dict[str, float]]:
    raise AssertionError(f"{layer.name} was said to be remembered")


def _metric(name: str, model: Any, images: CalibrationImages, sequences: Sequence[VideoSequence], seed: int) -> _Metric:
    if name == "jf":
        return _AccuracyMetric(model, sequences)
    return _OutputMetric(model, images, seed)


class _OutputMetric:
    """Mean relative squared error of the model's outputs."""

    def __init__(self, model: Any, images: CalibrationImages, seed: int) -> None:
        self._layers = dict(model.named_modules())
        self._error = OutputError(model, images, seed=seed)

    def __call__(self, layer: QuantizableLayer, quantized: nn.Module) -> tuple[float, dict[str, float]]:
        with replaced_parameters(self._layers[layer.name], quantized):
            errors = self._error.measure(encoder_changed=layer.region == "image_encoder")
        return sum(errors.values()) / len(errors), errors


class _AccuracyMetric:
    """Mean of what J&F and box mIoU lose, in percent."""

    def __init__(self, model: Any, sequences: Sequence[VideoSequence]) -> None:
        if not sequences:
            raise QConfigError('the metric "jf" needs videos with masks; give sequences')
        self._model, self._sequences = model, sequences
        self._samples = image_samples(sequences)
        self._float = self._scores()

    def __call__(self, layer: QuantizableLayer, quantized: nn.Module) -> tuple[float, dict[str, float]]:
        with replaced_parameters(self._model.get_submodule(layer.name), quantized):
            scores = self._scores()
        lost = {name: self._float[name] - value for name, value in scores.items()}
        return sum(lost.values()) / len(lost), scores

    def _scores(self) -> dict[str, float]:
        video = evaluate_video(self._model, self._sequences)
        return {"jf": video.jf, "miou": evaluate_image(self._model, self._samples, prompt="box").miou}
