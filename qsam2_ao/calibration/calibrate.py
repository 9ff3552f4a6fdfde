"""calibrate_qsam2: variance-reduced calibration of a float SAM2, as a function of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from ..errors import CalibrationError
from ..graph.paths import is_inside
from ..quantizers import LSCFakeQuantize
from .exercise import Model, in_float32
from .gram import InputStatistics
from .images import CalibrationData, CalibrationImages, load_images
from .kept import KeptCalibration
from .observe import IMAGE_ENCODER, in_chunks, observed_layers
from .report import VRCReport
from .rounding import start_quantizer
from .vrc import calibrate_weight

QuantizerFactory = Callable[[], FakeQuantizeBase]
"""Makes a weight fake-quantizer: ``LSCFakeQuantize.with_args(...)``, or one of torch.ao's."""


def calibrate_qsam2(
    model: Model,
    calibration_data: CalibrationData,
    *,
    damping: float | str = "auto",
    bits: int | Mapping[str, int] = 4,
    granularity: str = "channel",
    group_size: int | None = None,
    grid: str | None = None,
    quantizers: Mapping[str, QuantizerFactory] | None = None,
    scope: str | tuple[str, ...] | Callable[[str], bool] | None = None,
    tolerance: float = 0.01,
    max_images: int = 50,
    batch_size: int = 1,
    seed: int = 0,
    max_gram_bytes: int = 1 << 30,
    progress: bool = True,
) -> tuple[Model, VRCReport]:
    """Replace the weights of linear layers and 1x1 convolutions by their variance-reduced ones.

    The method is VRC of Q-SAM2 (arXiv 2506.09782): the ridge regression of each layer's own output on its
    calibration inputs, here of what varies in both: the biases take what that does to the mean output. No labels are
    needed and the result is still a float model. All statistics are those of the uncalibrated model.

    Args:
        model: A float ``SAM2Base`` or a subclass; it is not modified. Weights in another dtype than float32 are cast
            first.
        calibration_data: Images, see :class:`~qsam2_ao.calibration.images.CalibrationImages`.
        damping: lambda for all layers, relative to the inputs as in :func:`~qsam2_ao.calibration.vrc.solve_vrc`, or
            "auto" to choose it per layer.
        bits: Bit width that "auto" minimises the quantization error at, for all layers or by layer name.
        granularity: Of the weight scales: "tensor", "channel" or "group".
        group_size: Inputs per group, for "group".
        grid: Weight grid; None for the default of the bit width.
        quantizers: Weight quantizer of each layer by name, in place of the four settings above.
        scope: Layers to calibrate: one or several module paths, or a predicate on layer names. By default the
            layers that ``quantizers`` or a mapping of ``bits`` names, or else the image encoder, as in the
            paper.
        tolerance: Largest relative change of a layer's output energy.
        max_images: Number of images to use at most.
        batch_size: Images per forward pass.
        seed: Of the choice of images and of the prompts.
        max_gram_bytes: Memory for Gram matrices. Layers beyond it wait for another pass over the images.
        progress: Show progress bars.

    Returns:
        A calibrated copy of the model in float32, of its class, and the report.

    Raises:
        CalibrationError: Empty or unusable images, no layer in scope, or a layer that cannot be solved.
        NonFiniteError: A layer's inputs hold NaN or infinity.

    Example:
        >>> calibrated, report = calibrate_qsam2(model, "photos/", bits=4)
        >>> report.images
        3
    """
    if quantizers is None:
        quantizers = _lsc_quantizers(model, bits, granularity, group_size, grid)
        if scope is None and not isinstance(bits, Mapping):
            scope = IMAGE_ENCODER
    layers = _layers_in_scope(model, quantizers, scope)
    images = load_images(calibration_data, max_images=max_images, seed=seed)
    model = in_float32(model)
    calibrated = copy.deepcopy(model)
    report = calibrate_layers(
        model,
        {name: calibrated.get_submodule(name) for name in layers},
        quantizers,
        images,
        damping=damping,
        tolerance=tolerance,
        batch_size=batch_size,
        seed=seed,
        max_gram_bytes=max_gram_bytes,
        progress=progress,
    )
    return calibrated, report


def calibrate_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    quantizers: Mapping[str, QuantizerFactory],
    images: CalibrationImages,
    *,
    damping: float | str,
    tolerance: float = 0.01,
    batch_size: int = 1,
    seed: int = 0,
    max_gram_bytes: int = 1 << 30,
    progress: bool = True,
    then: Callable[[str, nn.Module, InputStatistics], None] | None = None,
    keep: KeptCalibration | None = None,
) -> VRCReport:
    """Replace the weights of layers by their variance-reduced ones, in place.

    Args:
        model: The float model whose layers of the same names are observed; its mode is restored.
        layers: Linear layers and 1x1 convolutions by name: of a copy of ``model``, or of one prepared from it.
        quantizers: What makes the weight quantizers of the layers to calibrate; other layers keep their weights.
        images: Calibration images.
        damping: As for :func:`calibrate_qsam2`, likewise ``tolerance``, ``batch_size``, ``seed`` and ``progress``.
        max_gram_bytes: Memory for Gram matrices.
        then: Called for each layer when its weight is settled: its name, the layer, what was observed of its inputs.
        keep: Where what is done is kept, and what an interrupted run has done comes from.

    Returns:
        The report, with an entry for each calibrated layer.

    Raises:
        CalibrationError: Two of the layers share a weight.
    """
    refuse_shared_weights(layers)
    floats = {name: model.get_submodule(name) for name in layers}
    report = VRCReport([], images=len(images), passes=len(list(in_chunks(floats, max_gram_bytes))))
    solved: set[str] = set()
    if keep is not None:
        report.layers = keep.report
        solved = {name for name, layer in layers.items() if keep.solved(name, layer)}
    for name, inputs in observed_layers(
        model,
        floats,
        images,
        batch_size=batch_size,
        seed=seed,
        max_gram_bytes=max_gram_bytes,
        progress=progress,
        without=solved,
        keep=keep,
    ):
        if name in quantizers:
            calibrate_layer(name, layers[name], inputs, quantizers[name], report, damping=damping, tolerance=tolerance)
        if then is not None:
            then(name, layers[name], inputs)
        if keep is not None:
            keep.solve(name, layers[name], report.layers)
    return report


def refuse_shared_weights(layers: Mapping[str, Any]) -> None:
    """Refuse layers that share a weight, since each would get one of its own.

    Args:
        layers: By name.

    Raises:
        CalibrationError: Two of them share it, naming both.
    """
    owners: dict[int, str] = {}
    for name, layer in layers.items():
        if (first := owners.setdefault(id(layer.weight), name)) != name:
            raise CalibrationError(
                f"layer {name!r} shares its weight with {first!r}, and calibration gives each its own: give one of "
                "them a copy, or leave one out"
            )


def calibrate_layer(
    name: str,
    layer: Any,
    inputs: InputStatistics,
    quantizer: QuantizerFactory,
    report: VRCReport,
    *,
    damping: float | str,
    tolerance: float = 0.01,
) -> None:
    """Replace one layer's weight by its variance-reduced one, in place; the bias takes (W - W_hat) mean.

    Without a bias the mean of the output counts as what varies does: the Gram matrix is then not centred.

    Args:
        name: Of the layer, for the report and for errors.
        layer: A linear layer or 1x1 convolution.
        inputs: What was observed of its inputs.
        quantizer: Makes the weight quantizer that the layer will get.
        report: Is added to.
        damping: As for :func:`calibrate_qsam2`, likewise ``tolerance``.
    """
    gram = inputs.gram_for(layer)
    weight, entry = calibrate_weight(
        layer.weight, gram, inputs.n, _quantize_with(quantizer), damping=damping, tolerance=tolerance, name=name
    )
    inputs.into_bias(layer, layer.weight.detach() - weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
    report.layers.append(entry)


def _quantize_with(factory: QuantizerFactory) -> Callable[[Tensor], Tensor]:
    """The quantized weight, for comparing candidates: its range has the least error of the weight.

    The one that is chosen starts with the least error of the output, a search that on the largest layers takes longer
    than all of these together.
    """

    def quantize(weight: Tensor) -> Tensor:
        quantizer = factory().to(weight.device)
        start_quantizer(quantizer, weight)
        with torch.no_grad():
            return quantizer(weight)

    return quantize


def is_calibratable(module: nn.Module) -> bool:
    """Whether VRC applies: a linear layer, or a 1x1 convolution without groups, stride 1 and no padding."""
    if isinstance(module, nn.Conv2d):
        return (
            module.kernel_size == (1, 1)
            and module.groups == 1
            and module.stride == (1, 1)
            and module.padding in ((0, 0), "valid", "same")
        )
    return isinstance(module, nn.Linear)


def _lsc_quantizers(
    model: nn.Module,
    bits: int | Mapping[str, int],
    granularity: str,
    group_size: int | None,
    grid: str | None,
) -> dict[str, QuantizerFactory]:
    by_name = (
        bits
        if isinstance(bits, Mapping)
        else {name: bits for name, module in model.named_modules() if is_calibratable(module)}
    )
    factories = {
        b: LSCFakeQuantize.with_args(bits=b, is_weight=True, granularity=granularity, group_size=group_size, grid=grid)
        for b in set(by_name.values())
    }
    return {name: factories[b] for name, b in by_name.items()}


def _layers_in_scope(
    model: nn.Module,
    quantizers: Mapping[str, QuantizerFactory],
    scope: str | tuple[str, ...] | Callable[[str], bool] | None,
) -> dict[str, nn.Module]:
    """Layers to calibrate by name, in the order of the model's modules."""
    applicable = {name: module for name, module in model.named_modules() if is_calibratable(module)}
    unknown = sorted(set(quantizers) - set(applicable))
    if unknown:
        raise CalibrationError(
            "VRC applies to linear layers and 1x1 convolutions; the model has none named " + ", ".join(unknown)
        )
    in_scope: Callable[[str], bool]
    if scope is None:
        in_scope = quantizers.__contains__
    elif callable(scope):
        in_scope = scope
    else:
        paths = (scope,) if isinstance(scope, str) else tuple(scope)
        in_scope = lambda name: is_inside(name, *paths)  # noqa: E731
    layers = {name: module for name, module in applicable.items() if name in quantizers and in_scope(name)}
    if not layers:
        raise CalibrationError("no linear layer or 1x1 convolution is in the calibration's scope; check `scope`")
    return layers
