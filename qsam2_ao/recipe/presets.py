"""What to quantize and how: presets, and the QConfigs that they are made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch.ao.quantization import PlaceholderObserver, QConfig, QConfigMapping

from ..errors import QConfigError
from ..graph import REGIONS
from ..quantizers import LSCFakeQuantize
from ..spelling import unknown_name

# These layers hold 0.3% of the embedded model's weights, so 8 bits cost next to nothing in size. What they are worth
# without training, on 64 test videos of 16 frames and 128 images with boxes, 16 calibration images, seed 0 (on a CPU,
# torch 2.13):
#   qsam2 quantize embedded --preset w2a8 --images 16 --first-last-bits {8,2} -o FILE; qsam2 evaluate FILE --videos 64
#   w2a8, 8 bits: J&F 78.0, box mIoU 70.4;  all 2 bits: J&F 75.4, box mIoU 69.3
#   w4a8, 8 bits: J&F 82.4, box mIoU 80.6;  all 4 bits: J&F 83.0, box mIoU 80.7 (no difference beyond noise)
# Layers that read pixels or mask values, and layers whose outputs are masks and scores. To torch.ao a pattern is a
# prefix, hence the "$".
FIRST_AND_LAST_LAYERS: tuple[str, ...] = (
    r"image_encoder\.trunk\.patch_embed\.proj$",
    r"memory_encoder\.mask_downsampler\.encoder\.0$",
    r"sam_mask_decoder\.output_hypernetworks_mlps\.\d+\.layers\.2$",
    r"sam_mask_decoder\.iou_prediction_head\.layers\.2$",
    r"sam_mask_decoder\.pred_obj_score_head(\.layers\.2)?$",
)
# What makes each position of the image choose among a few prompt tokens, where errors of the logits show at once.
# They hold 0.3% of SAM 2.1-T's weights. What they are worth without training, box mIoU on the 48 validation photographs
# of coco128, embedded-256 (float 50.3): w2a8 36.5 -> 46.7. Each other group of the decoder's layers costs less than a
# point at 2 bits, the image encoder nothing.
PROMPT_ATTENTION_LAYERS: tuple[str, ...] = (
    r"sam_mask_decoder\.transformer\.layers\.\d+\.cross_attn_image_to_token\.[qk]_proj$",
)
EXCEPTED_LAYERS: tuple[str, ...] = FIRST_AND_LAST_LAYERS + PROMPT_ATTENTION_LAYERS
"""Patterns of the layers that keep 8 bits in all presets."""


@dataclass(frozen=True)
class Preset:
    """A named recipe.

    Attributes:
        name: Its name, for example "w4a8".
        weight_bits: Bits of the weights, per output channel.
        activation_bits: Bits of the layers' inputs, per tensor; None keeps them in float.
        first_last_bits: Bits of the weights and inputs of ``EXCEPTED_LAYERS`` (inputs stay float in
            weight-only presets); never fewer than the rest has.
    """

    name: str
    weight_bits: int
    activation_bits: int | None
    first_last_bits: int = 8


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("w8a8", 8, 8),
        Preset("w4a8", 4, 8),
        Preset("w4a16", 4, None),
        Preset("w3a8", 3, 8),
        Preset("w3a16", 3, None),
        Preset("w2a8", 2, 8),
        Preset("w2a16", 2, None),
        Preset("w2a4", 2, 4),
    )
}


def lsc_qconfig(
    weight_bits: int,
    activation_bits: int | None,
    *,
    granularity: str = "channel",
    group_size: int | None = None,
    grid: str | None = None,
    momentum: float | None = None,
) -> QConfig:
    """A torch.ao ``QConfig`` whose weights and inputs are fake-quantized by learnable statistical clipping.

    Args:
        weight_bits: 2 to 8.
        activation_bits: 2 to 8, or None to leave the inputs in float (weight-only).
        granularity: "tensor", "channel" or "group" of the weights' scales.
        group_size: Inputs per scale, for "group".
        grid: The weights' grid; None for the default of the bit-width (mid-rise below 8 bits).
        momentum: Momentum of the averaged clipping multiplier; None for LSC's default.

    Returns:
        A QConfig for ``prepare_qsam2`` or for torch.ao's own graph mode.

    Raises:
        QConfigError: A setting out of range.

    Example:
        >>> recipe = {"image_encoder": lsc_qconfig(2, 8), "mask_decoder": lsc_qconfig(4, None)}
        >>> prepared = prepare_qsam2(model, recipe)
    """
    common = {} if momentum is None else {"momentum": momentum}
    weight = LSCFakeQuantize.with_args(
        bits=weight_bits,
        is_weight=True,
        granularity=granularity,
        group_size=group_size,
        grid=grid,
        **common,
    )
    weight()  # reports a bad setting here rather than in the middle of a trace
    if activation_bits is None:
        return QConfig(activation=PlaceholderObserver, weight=weight)
    activation = LSCFakeQuantize.with_args(bits=activation_bits, is_weight=False, **common)
    activation()
    return QConfig(activation=activation, weight=weight)


def preset_qconfig(name: str, *, first_last_bits: int | None = None) -> dict[str, QConfigMapping]:
    """A preset as one ``QConfigMapping`` per region.

    Args:
        name: A name out of ``PRESETS``.
        first_last_bits: Bits of ``EXCEPTED_LAYERS``, which are the first and last ones and the decoder's attention to
            prompts, instead of the preset's 8; the preset's own ``weight_bits`` switches the exception off.

    Returns:
        Region name -> mapping, to be edited or passed to ``prepare_qsam2``.

    Raises:
        QConfigError: An unknown preset, or ``first_last_bits`` below its own.

    Example:
        >>> recipe = preset_qconfig("w2a8")
        >>> memory_attention = recipe["memory_attention"].set_global(lsc_qconfig(4, 8))
    """
    preset = PRESETS.get(name)
    if preset is None:
        raise QConfigError(unknown_name("preset", name, PRESETS))
    if first_last_bits is not None and first_last_bits < preset.weight_bits:
        raise QConfigError(
            f"first_last_bits is {first_last_bits}, fewer than the {preset.weight_bits} that {name} has everywhere; "
            "take a preset of fewer bits, or leave it out"
        )
    edge_bits = max(preset.weight_bits, preset.first_last_bits if first_last_bits is None else first_last_bits)
    edge_activation = None if preset.activation_bits is None else max(preset.activation_bits, edge_bits)
    inner = lsc_qconfig(preset.weight_bits, preset.activation_bits)
    if edge_bits == preset.weight_bits:
        return everywhere(inner)
    return with_first_and_last(inner, lsc_qconfig(edge_bits, edge_activation))


def with_first_and_last(inner: QConfig, edge: QConfig) -> dict[str, QConfigMapping]:
    """A recipe in which the first and the last layers, and the decoder's attention to prompts, have their own QConfig.

    Args:
        inner: QConfig of all layers but ``EXCEPTED_LAYERS``.
        edge: QConfig of those.

    Returns:
        Region name -> mapping.

    Example:
        >>> recipe = with_first_and_last(lsc_qconfig(2, 8, grid="symmetric"), lsc_qconfig(8, 8))
        >>> prepared = prepare_qsam2(model, recipe)
    """
    recipe = everywhere(inner)
    for mapping in recipe.values():
        for pattern in EXCEPTED_LAYERS:
            mapping.set_module_name_regex(pattern, edge)
    return recipe


def everywhere(qconfig: QConfig) -> dict[str, QConfigMapping]:
    """A recipe in which all layers have the same QConfig.

    Args:
        qconfig: Of every layer.

    Returns:
        Region name -> a mapping of its own.
    """
    return {region: QConfigMapping().set_global(qconfig) for region in REGIONS}
