"""prepare_qsam2: a float SAM2 -> calibrated (VRC) -> its regions as fake-quantized FX graphs, ready to train."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.ao.quantization import FakeQuantize, FakeQuantizeBase, QConfigMapping

from .backend_config import QAT_MODULES
from .calibration import VRCReport, exercise, load_images
from .calibration.calibrate import calibrate_layer, is_calibratable, observed_layers
from .calibration.images import images_at_once
from .calibration.start import start_layer
from .compat import adapt_image_predictor
from .errors import GraphTraceError, NonFiniteError, QConfigError, QSAM2Error
from .fake_quant import fake_quantize_part, fake_quantizers, quantized_layers
from .graph import Part, as_part, find_parts, trace_part
from .models.config import model_config
from .qconfig import QConfigLike, layer_qconfig, resolve_qconfig
from .qconfig_rules import check_rules
from .quantizers import LSCFakeQuantize, RangedFakeQuantize
from .threads import one_thread_if_small

logger = logging.getLogger(__name__)


@torch.inference_mode(False)
def prepare_qsam2(
    model: SAM2Base,
    qconfig: QConfigLike,
    *,
    calibration_data: Any = None,
    vrc: str | float | None = "auto",
    vrc_regions: tuple[str, ...] = ("image_encoder",),
    rounding: str = "nearest",
    max_images: int = 50,
    seed: int = 0,
    progress: bool = True,
) -> SAM2Base:
    """Calibrate a float model and put fake-quantizers into it.

    With calibration data the weights of the linear layers of ``vrc_regions`` are calibrated first (VRC, Q-SAM2
    section 3), weights' ranges start with the least error of their layer's output, the biases of linear layers and 1x1
    convolutions make up for what rounding does to the mean of that output, and every input's range starts
    from what it sees there. Without, weights stay as they are and
    the ranges of the inputs start from the first training batch.

    Args:
        model: A float model of the ``SAM2Base`` family (``SAM2VideoPredictor``, ``SAM2Train``, ...), on any device.
            It is not changed. Weights in another dtype than float32, such as bfloat16, are cast first.
        qconfig: A preset's name ("w8a8", "w4a8", "w4a16", "w3a8", "w3a16", "w2a8", "w2a16", "w2a4"), a torch.ao
            ``QConfig``, a ``QConfigMapping`` with names of the model's layers, or a mapping from region to one of
            those.
        calibration_data: A folder of images, an iterable of PIL images, arrays [H, W, 3] or tensors [3, H, W], or
            a DataLoader. 50 images are enough.
        vrc: "auto" chooses the damping of each layer, a number is the same for all, None switches VRC off.
        vrc_regions: Regions whose linear layers are calibrated.
        rounding: "gptq" puts the weights of linear layers and 1x1 convolutions on their grid with the error of the
            output compensated, from the same calibration data; "nearest" leaves rounding to the fake-quantizers.
        max_images: How many of the images are used, a seeded random choice.
        seed: Seed of that choice and of the prompts used.
        progress: Show progress bars.

    Returns:
        A model of the same class in float32 whose quantized regions are graphs. It trains in any loop, also when made
        inside ``torch.inference_mode()``, and everything in it keeps its name: a float state dict loads with only the
        quantizers' keys missing. The report of the calibration is in ``qsam2_info["vrc"]``.

    Raises:
        QConfigError: An unknown preset, region or setting, a rule of a mapping that selects no layer, or a QConfig that
            cannot be trained, naming the layer.
        GraphTraceError: A part cannot be traced, or ``model`` is no SAM2 or is prepared already.
        CalibrationError: Empty or unusable calibration data.
        NonFiniteError: NaN or infinity in the model's weights, naming the tensor.

    Example:
        >>> prepared = prepare_qsam2(model, "w4a8", calibration_data="photos/")
        >>> ...  # train it
        >>> quantized = convert_qsam2(prepared)
    """
    recipe = resolve_qconfig(qconfig)
    parts = find_parts(model, recipe)
    if hasattr(model, "qsam2_info"):
        raise GraphTraceError("the model is prepared or converted already; start from the float model")
    check_rules(recipe, model)
    _check_finite(model)
    adapt_image_predictor()
    images = None if calibration_data is None else load_images(calibration_data, max_images=max_images, seed=seed)
    info: dict[str, Any] = {
        "qconfig": qconfig if isinstance(qconfig, str) else "custom",
        "images": 0 if images is None else len(images),
        "seed": seed,
        "vrc": None,
    }
    if images is None and (vrc is not None or rounding != "nearest"):
        logger.warning("no calibration data: VRC does not run, and input ranges start from the first training batch")
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).float()
    prepared = copy.deepcopy(model)
    prepared.qsam2_config = _config(model)
    layers: dict[str, Any] = {}
    for part in parts:
        mapping = recipe[part.region]
        module = prepared.get_submodule(part.path)
        if _has_quantized(module, part, mapping):
            graph = fake_quantize_part(trace_part(module, part.path), part, mapping)
            prepared.set_submodule(part.path, as_part(graph))
            layers.update({part.layer_name(name): layer for name, layer in quantized_layers(graph)})
    if not layers:
        raise QConfigError("the qconfig names no layer of the model, so there is nothing to quantize")
    for name, quantizer in fake_quantizers(prepared):
        if isinstance(quantizer, RangedFakeQuantize):
            quantizer.name = name
    with one_thread_if_small(model):
        batch_size = images_at_once(model)
        observed: dict[str, nn.Module] = {}
        if images is not None:
            vrc_paths = () if vrc is None else tuple(part.path for part in parts if part.region in vrc_regions)
            observed = {
                name: layer
                for name, layer in layers.items()
                if is_calibratable(layer)
                and (_inside(name, vrc_paths) or isinstance(layer.weight_fake_quant, LSCFakeQuantize))
            }
            report = VRCReport([], images=len(images))
            floats = {name: model.get_submodule(name) for name in observed}
            for name, inputs in observed_layers(
                model, floats, images, batch_size=batch_size, seed=seed, progress=progress
            ):
                layer = layers[name]
                if vrc is not None and _inside(name, vrc_paths):
                    factory = _weight_factory(recipe, parts, name, floats[name])
                    calibrate_layer(name, layer, inputs, factory, report, damping=vrc)
                start_layer(layer, layer.weight_fake_quant, inputs, rounding, name)
            info["vrc"] = report.to_dict() if report.layers else None
        for name, layer in layers.items():
            if name not in observed:
                start_layer(layer, layer.weight_fake_quant, None, rounding, name)
        if images is not None:
            calibrate_activations(prepared, images, batch_size=batch_size, seed=seed, progress=progress)
    prepared.qsam2_info = info
    return prepared


@torch.inference_mode(False)
def calibrate_activations(
    prepared: SAM2Base,
    calibration_data: Any,
    *,
    max_images: int = 50,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Start the clipping ranges of a prepared model's inputs from images, in place.

    Inputs are not quantized meanwhile, weights are.

    Args:
        prepared: A model from ``prepare_qsam2``.
        calibration_data: As for ``prepare_qsam2``.
        max_images: How many of the images are used.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images and of the prompts.
        progress: Show a progress bar.

    Raises:
        CalibrationError: Empty or unusable images.
        NonFiniteError: An input holds NaN or infinity, naming its quantizer.

    Example:
        >>> calibrate_activations(prepared, "photos/")
    """
    images = load_images(calibration_data, max_images=max_images, seed=seed)
    inputs = {name: q for name, q in fake_quantizers(prepared) if "input_quantizer" in name}
    with ExitStack() as stack:
        for quantizer in inputs.values():
            stack.enter_context(_observing(quantizer))
        exercise(prepared, images, batch_size=batch_size, seed=seed, progress="input ranges" if progress else None)
    for name, quantizer in inputs.items():
        if isinstance(quantizer, RangedFakeQuantize) and not quantizer.is_initialized:
            logger.warning("%s saw no data during calibration; it starts from the first training batch", name)


@contextmanager
def _observing(quantizer: FakeQuantizeBase) -> Iterator[None]:
    """Let an input's quantizer observe without quantizing."""
    if isinstance(quantizer, RangedFakeQuantize):
        with quantizer.calibrating():
            yield
        return
    enabled = bool(quantizer.fake_quant_enabled)
    quantizer.disable_fake_quant()
    try:
        yield
    finally:
        quantizer.enable_fake_quant(enabled)
    if isinstance(quantizer, FakeQuantize):
        # torch.ao's fused quantizer computes its scale only while it quantizes.
        for stored, value in zip((quantizer.scale, quantizer.zero_point), quantizer.calculate_qparams(), strict=True):
            stored.copy_(value)


def _has_quantized(module: nn.Module, part: Part, mapping: QConfigMapping) -> bool:
    """Whether any layer of a float part gets a QConfig."""
    return any(
        layer_qconfig(mapping, f"{part.path}.{name}" if name else part.path, layer) is not None
        for name, layer in module.named_modules()
        if type(layer) in QAT_MODULES
    )


def _inside(name: str, paths: tuple[str, ...]) -> bool:
    return any(f"{name}.".startswith(f"{path}.") for path in paths)


def _weight_factory(
    recipe: dict[str, QConfigMapping], parts: list[Part], name: str, layer: nn.Module
) -> Callable[[], FakeQuantizeBase]:
    """What makes the weight quantizer of a layer of the float model."""
    region = next(part.region for part in parts if _inside(name, (part.path,)))
    qconfig = layer_qconfig(recipe[region], name, layer)
    assert qconfig is not None
    return qconfig.weight


def _check_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} has NaN or infinite values; the checkpoint is damaged or training diverged")


def _config(model: SAM2Base) -> dict[str, Any] | None:
    """The model's configuration, needed only to save it: a model that cannot be described can still be trained."""
    try:
        return model_config(model)
    except QSAM2Error as error:
        logger.warning("the prepared model can be trained and converted, but not saved: %s", error)
        return None
