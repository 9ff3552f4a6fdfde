"""prepare_qsam2: a float SAM2 -> calibrated (VRC) -> its regions as fake-quantized FX graphs, ready to train."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn
from torch.ao.quantization import FakeQuantize, FakeQuantizeBase

from .calibration import CalibrationData, CalibrationImages, VRCReport, exercise, load_images
from .calibration.calibrate import calibrate_layers, is_calibratable
from .calibration.exercise import in_float32, is_float32
from .calibration.images import images_at_once
from .calibration.input_ranges import InputRows, fit_to_outputs
from .calibration.kept import KeptCalibration, content_hash
from .calibration.rounding import ROUNDINGS, start_layer
from .calibration.vrc import is_damping
from .compat import adapt_predictors
from .compat.random import OwnGenerator
from .errors import CalibrationError, GraphTraceError, NonFiniteError, QConfigError, QSAM2Error
from .graph import check_regions
from .models.config import model_config
from .models.wrappers import check_bare
from .quantizers import LSCFakeQuantize, RangedFakeQuantize
from .quantizers.base import QuantizerBase
from .recipe import LayerRecipe, QConfigLike, fake_quantizers, insert_fake_quantizers, resolve_recipe
from .recipe.prepared import input_readers
from .spelling import unknown_name
from .stage import ModelStage, set_stage, stage_of
from .threads import one_thread_if_small

logger = logging.getLogger(__name__)


@torch.inference_mode(False)
def prepare_qsam2(
    model: SAM2Base,
    qconfig: QConfigLike,
    *,
    calibration_data: CalibrationData | None = None,
    vrc: str | float | None = "auto",
    vrc_regions: tuple[str, ...] = ("image_encoder",),
    rounding: str = "nearest",
    max_images: int = 50,
    seed: int = 0,
    progress: bool = True,
    keep: str | os.PathLike[str] | None = None,
) -> SAM2Base:
    """Calibrate a float model and put fake-quantizers into it.

    With calibration data the weights of the linear layers of ``vrc_regions`` are calibrated first (VRC, Q-SAM2
    section 3), weights' ranges start with the least error of their layer's output, the biases of linear layers and 1x1
    convolutions make up for what rounding does to the mean of that output, and every input's range starts
    from what it sees there. Without, weights stay as they are and
    the ranges of the inputs start from the first training batch.

    Args:
        model: A float model of the ``SAM2Base`` family (``SAM2VideoPredictor``, ``SAM2Train``, ...), on any device.
            It is not changed. Weights in another dtype than float32, such as bfloat16, are cast first. A module that
            SAM2 has not, such as a head of your own, stays in float; such a model cannot be saved to a packed file.
        qconfig: A preset's name ("w8a8", "w4a8", "w4a16", "w3a8", "w3a16", "w2a8", "w2a16", "w2a4"), a torch.ao
            ``QConfig``, a ``QConfigMapping`` with names of the model's layers, or a mapping from region to one of
            those.
        calibration_data: A folder of images, an iterable of PIL images, arrays [H, W, 3] or tensors [3, H, W], or
            a DataLoader. 50 images are enough.
        vrc: "auto" chooses the damping of each layer, a number is the same for all, None switches VRC off.
        vrc_regions: Regions whose linear layers are calibrated.
        rounding: "gptq" moves the weights of linear layers and 1x1 convolutions to where they are rounded with the
            output's error compensated, by the same calibration data; "nearest" leaves rounding to the fake-quantizers.
        max_images: How many of the images are used, a seeded random choice.
        seed: Seed of that choice and of the prompts used.
        progress: Show progress bars.
        keep: A file in which what is done of the calibration is kept, once a minute. Where it exists, the same call
            with the same data goes on from it, to the same bits; delete it afterwards.

    Returns:
        A model of the same class in float32 whose quantized regions are graphs. It trains in any loop, also when made
        inside ``torch.inference_mode()``, and everything in it keeps its name: a float state dict loads with only the
        quantizers' keys missing. The report of the calibration is in ``qsam2_info["vrc"]``.

    Raises:
        QConfigError: An unknown preset, region or setting, a rule of a mapping that selects no layer, a QConfig that
            cannot be trained, naming the layer, or one for the memory of a model with ``num_maskmem=0``.
        GraphTraceError: A part cannot be traced, or ``model`` is no SAM2, is prepared already, is wrapped in another
            one (DataParallel, torch.compile, peft) or has adapters (LoRA) that were not merged.
        UnsupportedLayerError: A layer's weight is made of other tensors by a hook (pruning, the old ``weight_norm``).
        CalibrationError: Empty or unusable calibration data.
        NonFiniteError: NaN or infinity in the model's weights, naming the tensor.
        CheckpointError: ``keep`` is damaged, or of another calibration.

    Example:
        >>> prepared = prepare_qsam2(model, "w4a8", calibration_data="photos/")
        >>> # ... train it
        >>> quantized = convert_qsam2(prepared)
    """
    check_bare(model, "prepare_qsam2")
    if stage_of(model).name != "float":
        raise GraphTraceError("the model is prepared or converted already; start from the float model")
    recipe = resolve_recipe(qconfig, model)
    check_regions(vrc_regions)
    if rounding not in ROUNDINGS:
        raise QConfigError(unknown_name("rounding", rounding, ROUNDINGS))
    if vrc is not None and not is_damping(vrc):
        raise QConfigError(f'vrc must be "auto", a number that is not negative, or None, got {vrc!r}')
    _check_memory(model, recipe)
    _check_finite(model)
    adapt_predictors()
    images = None if calibration_data is None else load_images(calibration_data, max_images=max_images, seed=seed)
    if images is None and (vrc is not None or rounding != "nearest"):
        logger.warning("no calibration data: VRC does not run, and input ranges start from the first training batch")
    model = in_float32(model)
    prepared = copy.deepcopy(model)
    config, unsaved = _config(model)
    set_stage(prepared, ModelStage(config=config, unsaved=unsaved, images_only=stage_of(model).images_only))
    with OwnGenerator():  # torch.ao's layers draw the weights that they are given afterwards
        layers = insert_fake_quantizers(prepared, recipe)
    _name_lost_hooks(model, prepared)
    report: VRCReport | None = None
    with one_thread_if_small(model):
        if images is None:
            for name, layer in layers.items():
                start_layer(layer, layer.weight_fake_quant, None, rounding, name)
        else:
            kept = None
            if keep is not None:
                chosen = {"vrc": vrc, "vrc_regions": list(vrc_regions), "rounding": rounding, "seed": seed}
                contents = {"images": images.content_hash(), "weights": content_hash(model)}
                quantizers = {name: str(layer.weight_fake_quant) for name, layer in layers.items()}
                kept = KeptCalibration(keep, {**chosen, **contents, "layers": quantizers})
            report = _calibrate_weights(model, layers, recipe, images, vrc, vrc_regions, rounding, seed, progress, kept)
            _start_inputs(prepared, images, images_at_once(model), seed, progress, kept)
    info = {
        "qconfig": qconfig if isinstance(qconfig, str) else "custom",
        "images": 0 if images is None else len(images),
        "seed": seed,
        "vrc": report.to_dict() if report is not None and report.layers else None,
    }
    if stage_of(model).images_only:
        info["images_only"] = True
    set_stage(prepared, replace(stage_of(prepared), info=info))
    return prepared


def _name_lost_hooks(model: nn.Module, prepared: nn.Module) -> None:
    """Say which of the user's hooks will not be called: those of modules between a part and its layers."""
    modules = dict(prepared.named_modules())
    lost = [name for name, module in model.named_modules() if _hooks(module) > _hooks(modules.get(name))]
    if lost:
        logger.warning(
            "these modules' hooks are lost, since a prepared model's parts are graphs: %s; register them anew on its "
            "parts, such as image_encoder, or on its layers",
            ", ".join(lost),
        )


def _hooks(module: nn.Module | None) -> int:
    """How many hooks of users a module has around its forward."""
    if module is None:
        return 0
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return sum(not getattr(hook, "of_part", False) for hook in hooks)


def _calibrate_weights(
    model: SAM2Base,
    layers: Mapping[str, Any],
    recipe: Mapping[str, LayerRecipe],
    images: CalibrationImages,
    vrc: str | float | None,
    vrc_regions: tuple[str, ...],
    rounding: str,
    seed: int,
    progress: bool,
    keep: KeptCalibration | None,
) -> VRCReport:
    """Calibrate the weights of the prepared ``layers`` on what their float twins read, and start their quantizers."""
    by_vrc = {name for name in layers if vrc is not None and recipe[name].part.region in vrc_regions}
    observed = {
        name: layer
        for name, layer in layers.items()
        if is_calibratable(layer) and (name in by_vrc or isinstance(layer.weight_fake_quant, LSCFakeQuantize))
    }
    report = calibrate_layers(
        model,
        observed,
        {name: recipe[name].qconfig.weight for name in observed if name in by_vrc},
        images,
        damping="auto" if vrc is None else vrc,
        batch_size=images_at_once(model),
        seed=seed,
        progress=progress,
        then=lambda name, _, inputs: start_layer(layers[name], layers[name].weight_fake_quant, inputs, rounding, name),
        keep=keep,
    )
    for name, layer in layers.items():
        if name not in observed:
            start_layer(layer, layer.weight_fake_quant, None, rounding, name)
    return report


@torch.inference_mode(False)
def calibrate_activations(
    prepared: SAM2Base,
    calibration_data: CalibrationData,
    *,
    max_images: int = 50,
    batch_size: int = 1,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Start the clipping ranges of a prepared model's inputs from images, in place, as ``prepare_qsam2`` does.

    Inputs are not quantized meanwhile, weights are. The biases of linear layers and 1x1 convolutions are corrected for
    what the new ranges do to the mean of their outputs; ranges that there were have their corrections taken back.

    Args:
        prepared: A model from ``prepare_qsam2``.
        calibration_data: As for ``prepare_qsam2``.
        max_images: How many of the images are used.
        batch_size: Images per forward pass.
        seed: Seed of the choice of images and of the prompts.
        progress: Show a progress bar.

    Raises:
        CalibrationError: Empty or unusable images, or a model that was cast to another dtype than float32.
        NonFiniteError: An input holds NaN or infinity, naming its quantizer.

    Example:
        >>> calibrate_activations(prepared, "photos/")
    """
    if not is_float32(prepared):
        raise CalibrationError("the prepared model is not in float32, as SAM2 runs: cast it after the calibration")
    images = load_images(calibration_data, max_images=max_images, seed=seed)
    _start_inputs(prepared, images, batch_size, seed, progress)


def _start_inputs(
    prepared: SAM2Base,
    images: CalibrationImages,
    batch_size: int,
    seed: int,
    progress: bool,
    keep: KeptCalibration | None = None,
) -> None:
    inputs = {name: q for name, q in fake_quantizers(prepared) if "input_quantizer" in name}
    # Those whose ranges can be chosen by what their layers make of them, which multiply rows.
    readers = {
        name: layers
        for name, layers in input_readers(prepared).items()
        if isinstance(inputs[name], LSCFakeQuantize) and all(map(is_calibratable, layers))
    }
    rows = {name: InputRows(-1 if isinstance(layers[0], nn.Linear) else -3) for name, layers in readers.items()}
    # Biases belong to the ranges that inputs have had so far.
    before: dict[str, Any] = {
        name: copy.deepcopy(inputs[name]) for name in readers if cast(LSCFakeQuantize, inputs[name]).is_initialized
    }
    title = "input ranges"
    with ExitStack() as stack:
        for name, quantizer in inputs.items():
            stack.enter_context(_observing(quantizer))
            if name in rows:
                stack.callback(quantizer.register_forward_pre_hook(rows[name].hook).remove)
        over = None
        if keep is not None:
            over = keep.over(title, lambda: _seen(inputs, rows), lambda state: _see_again(inputs, rows, state))
        exercise(prepared, images, batch_size=batch_size, seed=seed, progress=title if progress else None, over=over)
    for name, layers in readers.items():
        fit_to_outputs(cast(LSCFakeQuantize, inputs[name]), rows[name].sample(), layers, before.get(name))
    for name, quantizer in inputs.items():
        if isinstance(quantizer, RangedFakeQuantize) and not quantizer.is_initialized:
            logger.warning("%s saw no data during calibration; it starts from the first training batch", name)


def _seen(quantizers: Mapping[str, FakeQuantizeBase], rows: Mapping[str, InputRows]) -> dict[str, Any]:
    """What quantizers have observed so far, and the rows that their layers read."""
    observed = {
        name: quantizer.collected.progress()
        if isinstance(quantizer, QuantizerBase) and quantizer.collected is not None
        else quantizer.state_dict()
        for name, quantizer in quantizers.items()
    }
    return {"observed": observed, "rows": {name: sample.progress() for name, sample in rows.items()}}


def _see_again(
    quantizers: Mapping[str, FakeQuantizeBase], rows: Mapping[str, InputRows], state: Mapping[str, Any]
) -> None:
    """Let quantizers have observed what :func:`_seen` gave."""
    for name, quantizer in quantizers.items():
        observed = state["observed"][name]
        if isinstance(quantizer, QuantizerBase) and quantizer.collected is not None:
            device = next(quantizer.parameters()).device
            quantizer.collected.go_on(observed, device)
            if name in rows:
                rows[name].go_on(state["rows"][name], device)
        else:
            quantizer.load_state_dict(observed)


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


def _check_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.device.type != "meta" and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} has NaN or infinite values; the checkpoint is damaged or training diverged")


def _check_memory(model: SAM2Base, recipe: Mapping[str, LayerRecipe]) -> None:
    """Refuse to calibrate layers that never run."""
    idle = sorted({layer.part.path for layer in recipe.values()} & _WITH_MEMORY)
    if model.num_maskmem == 0 and idle:
        raise QConfigError(
            f"the model has num_maskmem=0, which switches its memory off: {', '.join(idle)} never run and cannot be "
            "calibrated; quantize the other regions, as with "
            '{"image_encoder": "w4a8", "mask_decoder": "w4a8"}'
        )


#: The parts that run when a frame is tracked from the memory of others.
_WITH_MEMORY = {"memory_attention", "memory_encoder", "obj_ptr_tpos_proj"}


def _config(model: SAM2Base) -> tuple[dict[str, Any] | None, str | None]:
    """The model's configuration, needed only to save it, or why a model that can be trained has none."""
    try:
        return model_config(model), None
    except QSAM2Error as error:
        added = [name for name, _ in model.named_children() if name not in _SAM2_CHILDREN]
        if added:
            logger.warning(
                "%s: no part of SAM2, so it stays as it is, in float, and runs where your own code calls it",
                ", ".join(added),
            )
        logger.warning("the prepared model can be trained and converted, but not saved: %s", error)
        return None, str(error)


#: What a SAM2Base consists of.
_SAM2_CHILDREN = {
    "image_encoder",
    "mask_downsample",
    "memory_attention",
    "memory_encoder",
    "obj_ptr_proj",
    "obj_ptr_tpos_proj",
    "sam_mask_decoder",
    "sam_prompt_encoder",
}
