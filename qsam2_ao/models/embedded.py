"""The small SAM2 that comes with the package: a SAM 2.1 of 2.6 M parameters for 96 x 96 pixel inputs.

It is built from the ``sam2`` package's own classes by a Hydra-style config and trained by
``python -m qsam2_ao.training.embedded`` on the videos of :mod:`qsam2_ao.data.procedural`.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..compat import adapt_predictors
from ..compat.random import OwnGenerator
from ..errors import CheckpointError, QSAM2Error
from ..files import atomic_write
from ..spelling import unknown_name
from ..stage import ModelStage, set_stage
from ..threads import survive_forks

#: The model's Hydra-style config, laid out like the official ``sam2.1_hiera_*.yaml``.
EMBEDDED_CONFIG = Path(__file__).parent / "configs" / "qsam2_embedded.yaml"
#: The config of the larger model for real pictures: 256 x 256 pixels, 5.1 M parameters.
EMBEDDED_256_CONFIG = EMBEDDED_CONFIG.with_name("qsam2_embedded_256.yaml")
#: The trained weights, stored as float16.
EMBEDDED_WEIGHTS = Path(__file__).parent / "weights" / "qsam2_embedded.safetensors"
#: Those of the larger model; docs/model_card.md says how they came about.
EMBEDDED_256_WEIGHTS = EMBEDDED_WEIGHTS.with_name("qsam2_embedded_256.safetensors")


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that comes with the package.

    Attributes:
        config: Its Hydra-style config.
        weights: Its trained weights.
    """

    config: Path
    weights: Path


#: By the names that commands take. The first is for procedural scenes and quick to try, the other for real pictures.
EMBEDDED_MODELS = {
    "embedded": EmbeddedModel(EMBEDDED_CONFIG, EMBEDDED_WEIGHTS),
    "embedded-256": EmbeddedModel(EMBEDDED_256_CONFIG, EMBEDDED_256_WEIGHTS),
}

#: What ``sam2.build_sam`` overrides for inference when ``apply_postprocessing`` is set. Its
#: ``fill_hole_area=8`` is left out: it needs the CUDA extension that ``sam2`` builds optionally.
DECODER_POSTPROCESSING: dict[str, Any] = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
_PREDICTOR = "sam2.sam2_video_predictor.SAM2VideoPredictor"


@torch.inference_mode(False)
def build_embedded(
    model_class: type[nn.Module] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    seed: int = 0,
    apply_postprocessing: bool = False,
    **overrides: Any,
) -> nn.Module:
    """Build the embedded model with random weights, ready to be trained from scratch.

    Args:
        model_class: ``SAM2Base`` (the default), ``SAM2VideoPredictor``, ``SAM2Train`` or a subclass of one.
        config: Another Hydra-style config of the same layout; :data:`EMBEDDED_CONFIG` by default.
        seed: Seed of the initial weights; the global random state is left as it was.
        apply_postprocessing: Apply the same inference overrides as ``sam2.build_sam``.
        overrides: Further arguments of the model class, replacing those of the config.

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        QSAM2Error: ``model_class`` is no class.

    Example:
        >>> from training.model.sam2 import SAM2Train
        >>> model = build_embedded(SAM2Train, num_correction_pt_per_frame=1)
    """
    if not isinstance(model_class, type | None):
        raise QSAM2Error(
            f"model_class must be a class such as SAM2Base, not {model_class!r}; an embedded model is chosen by "
            'load_embedded(name="embedded-256")'
        )
    adapt_predictors()
    node = OmegaConf.load(EMBEDDED_CONFIG if config is None else config).model
    target = node["_target_"] if model_class is None else f"{model_class.__module__}.{model_class.__qualname__}"
    changes: dict[str, Any] = {
        "_target_": target,
        **({"sam_mask_decoder_extra_args": DECODER_POSTPROCESSING} if apply_postprocessing else {}),
        **overrides,
    }
    if apply_postprocessing and target == _PREDICTOR:
        changes.setdefault("binarize_mask_from_pts_for_mem_enc", True)
    node = OmegaConf.merge(node, changes)
    OmegaConf.resolve(node)
    with OwnGenerator(seed):
        model: nn.Module = instantiate(node, _recursive_=True)
        _start_learnable(model)
    survive_forks()
    set_stage(model, ModelStage())  # a pickled one needs SAM2's image predictor adapted too
    return model.eval()


@torch.no_grad()
def _start_learnable(model: Any) -> None:
    """Change the initial weights where those of the package block learning from scratch."""
    # A negative object score replaces the mask by a constant, which has no gradient: start sure of the
    # object.
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(4.0)
    # Equal query and key biases make rotary attention look at the same place first.
    for layer in model.memory_attention.layers:
        for attention in (layer.self_attn, layer.cross_attn_image):
            attention.q_proj.bias.normal_(0, 1)
            attention.k_proj.bias.copy_(attention.q_proj.bias)
    # Equal query and key weights make the decoder's tokens look at what resembles them.
    transformer = model.sam_mask_decoder.transformer
    for layer in transformer.layers:
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            attention.k_proj.load_state_dict(attention.q_proj.state_dict())
    transformer.final_attn_token_to_image.k_proj.load_state_dict(
        transformer.final_attn_token_to_image.q_proj.state_dict()
    )


@torch.inference_mode(False)
def load_embedded(
    model_class: type[nn.Module] | None = None,
    *,
    name: str = "embedded",
    config: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    apply_postprocessing: bool = True,
    **overrides: Any,
) -> nn.Module:
    """Load a trained embedded model.

    Args:
        model_class: As for :func:`build_embedded`, but ``SAM2VideoPredictor`` by default.
        name: "embedded", which knows procedural scenes, or "embedded-256" for real pictures.
        config: As for :func:`build_embedded`; that of the model by default.
        weights: Another weight file of the same model, as :func:`save_weights` writes it.
        apply_postprocessing: Apply the same inference overrides as ``sam2.build_sam``.
        overrides: Further arguments of the model class, replacing those of the config.

    Returns:
        The model in eval mode, on the CPU, in float32.

    Raises:
        CheckpointError: The file is absent, damaged, or of another model.
        QSAM2Error: No embedded model has that name.

    Example:
        >>> predictor = load_embedded(name="embedded-256")
    """
    if name not in EMBEDDED_MODELS:
        raise QSAM2Error(unknown_name("embedded model", name, EMBEDDED_MODELS))
    if model_class is None:
        model_class = importlib.import_module("sam2.sam2_video_predictor").SAM2VideoPredictor
    files = EMBEDDED_MODELS[name]
    config = files.config if config is None else config
    model = build_embedded(model_class, config=config, apply_postprocessing=apply_postprocessing, **overrides)
    load_weights(model, files.weights if weights is None else weights)
    return model


def save_weights(state: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Write a state dict as float16 safetensors.

    Args:
        state: The model's state dict; floating point tensors of any precision.
        path: The file to write, replaced only when complete.

    Raises:
        CheckpointError: A value is not finite or does not fit in float16.
        QSAM2Error: The file cannot be written.

    Example:
        >>> save_weights(build_embedded().state_dict(), "weights.safetensors")
    """
    half = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in state.items()}
    for name, value in half.items():
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{name}: a value is not finite in float16; the training may have diverged")
    with atomic_write(path) as temporary:
        save_file(half, temporary)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what :func:`save_weights` wrote into a float32 model, strictly.

    Args:
        model: A model with exactly the file's tensors.
        path: The file.

    Raises:
        CheckpointError: The file is absent, damaged, or its names or shapes are not the model's.

    Example:
        >>> load_weights(build_embedded(), "embedded.safetensors")
    """
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; train it with python -m qsam2_ao.training.embedded") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); get it again") from error
    expected = model.state_dict()
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or foreign:
        raise CheckpointError(
            f"{path} does not fit the model: missing {missing[:5]}, unknown {foreign[:5]} "
            f"({len(missing)} and {len(foreign)} tensors); it is a file of another model"
        )
    for name, value in state.items():
        if value.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(value.shape)}, the model has {tuple(expected[name].shape)}"
            )
    model.load_state_dict({name: value.float() for name, value in state.items()})


def set_image_size(model: nn.Module, size: int) -> None:
    """Let a SAM2 read square images of another size; no weight depends on it.

    Args:
        model: A SAM2 of any class, changed in place.
        size: The side in pixels, a multiple of 32.

    Raises:
        ValueError: The size is not a positive multiple of 32.

    Example:
        >>> set_image_size(model, 128)
    """
    if size <= 0 or size % 32:
        raise ValueError(f"the size must be a positive multiple of 32, got {size}")
    sam: Any = model
    side = size // sam.backbone_stride
    sam.image_size, sam.sam_image_embedding_size = size, side
    prompts = sam.sam_prompt_encoder
    prompts.image_embedding_size, prompts.input_image_size = (side, side), (size, size)
    prompts.mask_input_size = (4 * side, 4 * side)
