"""What becomes of each layer of a model: presets, rules, and fake-quantizers put where they say."""

from .backend import QAT_MODULES, qsam2_backend_config
from .insert import insert_fake_quantizers
from .prepared import fake_quantizers, quantized_layers
from .presets import EXCEPTED_LAYERS, FIRST_AND_LAST_LAYERS, PRESETS, lsc_qconfig, preset_qconfig, with_first_and_last
from .resolve import LayerRecipe, QConfigLike, layer_qconfig, resolve_qconfig, resolve_recipe

__all__ = [
    "EXCEPTED_LAYERS",
    "FIRST_AND_LAST_LAYERS",
    "PRESETS",
    "QAT_MODULES",
    "LayerRecipe",
    "QConfigLike",
    "fake_quantizers",
    "insert_fake_quantizers",
    "layer_qconfig",
    "lsc_qconfig",
    "preset_qconfig",
    "qsam2_backend_config",
    "quantized_layers",
    "resolve_qconfig",
    "resolve_recipe",
    "with_first_and_last",
]
