"""Models that something is wrapped around, or put into."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, weight_norm
from torch.optim.swa_utils import AveragedModel

from qsam2_ao import convert_qsam2, prepare_qsam2, save_qsam2
from qsam2_ao.errors import GraphTraceError, UnsupportedLayerError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.models.wrappers import check_bare
from qsam2_ao.predictors import image_predictor


class LoRALinear(nn.Module):
    """As peft and most copies of LoRA lay it out."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def with_lora(model: Any) -> nn.Module:
    block = model.image_encoder.trunk.blocks[0]
    block.attn.qkv = LoRALinear(block.attn.qkv)
    return model


def with_a_compiled_part(model: Any) -> nn.Module:
    model.image_encoder.trunk = torch.compile(model.image_encoder.trunk)
    return model


def with_weight_norm(model: Any) -> nn.Module:
    nn.utils.parametrizations.weight_norm(model.memory_attention.layers[0].linear1)
    return model


@pytest.mark.parametrize("call", [lambda m: prepare_qsam2(m, "w4a8"), convert_qsam2, lambda m: save_qsam2(m, "no")])
@pytest.mark.parametrize(
    ("wrap", "message"),
    [
        (nn.DataParallel, r"got a DataParallel around the model: .*\(model\.module, \.\.\.\)"),
        (AveragedModel, r"model\.module"),
        (torch.compile, r"got a OptimizedModule around the model: .*model\._orig_mod"),
        (image_predictor, r"got a SAM2ImagePredictor around the model: .*model\.model"),
        (with_lora, r"image_encoder\.trunk\.blocks\.0\.attn\.qkv has an adapter \(lora_A, lora_B\): merge first"),
        (with_a_compiled_part, r"image_encoder\.trunk was compiled by torch\.compile"),
        (with_weight_norm, r"memory_attention\.layers\.0\.linear1 computes its weight anew .*remove_parametrizations"),
    ],
)
def test_wrapped_models_are_refused_by_name(call: Callable[[Any], object], wrap: Any, message: str) -> None:
    with pytest.raises(GraphTraceError, match=message):
        call(wrap(build_embedded()))


def test_models_of_peft() -> None:
    class PeftModel(nn.Module):
        pass

    PeftModel.__module__ = "peft.peft_model"
    with pytest.raises(GraphTraceError, match=r"merge first, with model = model\.merge_and_unload\(\)"):
        check_bare(PeftModel(), "prepare_qsam2")


def test_bare_models_pass() -> None:
    check_bare(build_embedded(), "prepare_qsam2")
    check_bare("no model at all", "prepare_qsam2")  # for others to refuse


@pytest.mark.parametrize("hook", [partial(prune.l1_unstructured, name="weight", amount=0.5), weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_that_hooks_make_are_refused_by_name(hook: Callable[[nn.Module], object]) -> None:
    model = build_embedded()
    hook(model.image_encoder.trunk.blocks[0].mlp.layers[0])
    with pytest.raises(UnsupportedLayerError, match=r"blocks\.0\.mlp\.layers\.0 is no parameter: .*prune\.remove"):
        check_bare(model, "prepare_qsam2")
