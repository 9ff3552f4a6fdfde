"""Names, attributes and methods of a float model that SAM2's own code, checkpoints and patterns rely on."""

from __future__ import annotations

import copy
import fnmatch
import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from sam2_runs import assert_identical, images, run_image
from torch import nn
from torch.ao.quantization import FakeQuantizeBase
from training.model.sam2 import SAM2Train
from training.optimizer import construct_optimizer
from training.utils.checkpoint_utils import load_state_dict_into_model

from qsam2_ao import as_class, build_embedded, convert_qsam2, load_qsam2, lsc_qconfig, prepare_qsam2, save_qsam2
from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.errors import CheckpointError
from qsam2_ao.models.config import build_from_config, model_config

LONE = ("sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1", "obj_ptr_tpos_proj")


def photos() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8))


@pytest.fixture(scope="module")
def model() -> SAM2Base:
    return build_embedded(SAM2Train)


@pytest.fixture(scope="module")
def prepared(model: SAM2Base) -> SAM2Base:
    return prepare_qsam2(model, "w4a8", calibration_data=photos(), vrc=None, progress=False)


@pytest.fixture(scope="module")
def loaded(prepared: SAM2Base, tmp_path_factory: pytest.TempPathFactory) -> SAM2Base:
    path = tmp_path_factory.mktemp("names") / "w4a8.safetensors"
    save_qsam2(convert_qsam2(prepared), path)
    return load_qsam2(path)


def quantizer_keys(model: nn.Module) -> set[str]:
    """Names in the state dict of what quantizers hold."""
    kinds = (FakeQuantizeBase, ActivationQuantizer)
    return {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for key in module.state_dict()
    }


@pytest.mark.slow
def test_prepared_and_loaded_models_add_the_names_of_quantizers_alone(
    model: SAM2Base, prepared: SAM2Base, loaded: SAM2Base
) -> None:
    names = list(model.state_dict())
    assert {f"{name}.weight" for name in LONE} < set(names)
    for quantized in (prepared, convert_qsam2(prepared), loaded, as_class(loaded, SAM2Base)):
        keys = quantizer_keys(quantized)
        assert keys
        assert [name for name in quantized.state_dict() if name not in keys] == names  # the order is the float one, too


@pytest.mark.slow
def test_every_qconfig_keeps_the_names(model: SAM2Base) -> None:
    recipes: list[Any] = [
        {"mask_decoder": lsc_qconfig(4, None)},
        {"obj_ptr_proj": lsc_qconfig(3, 8, granularity="group", group_size=16)},
        {"mask_decoder": torch.ao.quantization.get_default_qat_qconfig("x86")},
    ]
    for recipe in recipes:
        quantized = prepare_qsam2(model, recipe)
        assert [n for n in quantized.state_dict() if n not in quantizer_keys(quantized)] == list(model.state_dict())


@pytest.mark.slow
def test_a_single_linear_head_keeps_its_name() -> None:
    config = model_config(build_embedded())
    model = build_from_config({**config, "use_mlp_for_obj_ptr_proj": False, "pred_obj_scores_mlp": False})
    quantized = prepare_qsam2(model, "w4a16", vrc=None, progress=False)
    for name in ("obj_ptr_proj", "sam_mask_decoder.pred_obj_score_head"):
        assert isinstance(model.get_submodule(name), nn.Linear)
        assert isinstance(quantized.get_submodule(name), nn.Linear)
        assert hasattr(quantized.get_submodule(name), "weight_fake_quant")
    assert set(model.state_dict()) < set(quantized.state_dict())
    assert_identical(run_image(convert_qsam2(quantized), images(1, 96)), run_image(quantized.eval(), images(1, 96)))


@pytest.mark.slow
def test_a_float_checkpoint_loads_with_the_quantizers_missing(prepared: SAM2Base) -> None:
    other = {name: value + 1 for name, value in build_embedded(SAM2Train).state_dict().items()}
    ours = copy.deepcopy(prepared)
    result = ours.load_state_dict(other, strict=False)
    assert result.unexpected_keys == []
    assert set(result.missing_keys) == quantizer_keys(prepared)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in other.items())


def test_sam2s_own_loader_takes_a_float_checkpoint(model: SAM2Base, prepared: SAM2Base) -> None:
    patterns = ["*weight_fake_quant.*", "*input_quantizer_*"]
    load_state_dict_into_model(model.state_dict(), copy.deepcopy(prepared), ignore_missing_keys=patterns)
    with pytest.raises(KeyError, match="Missing"):
        load_state_dict_into_model(model.state_dict(), copy.deepcopy(prepared))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["sam_mask_decoder.conv_s?.*", "obj_ptr_tpos_proj.weight", "*bias*", "*norm*"])
def test_patterns_match_what_they_match_in_float(model: SAM2Base, prepared: SAM2Base, pattern: str) -> None:
    names, others = ([name for name, _ in m.named_parameters()] for m in (model, prepared))
    found = [name for name in fnmatch.filter(others, pattern) if name not in quantizer_keys(prepared)]
    assert found == fnmatch.filter(names, pattern) != []


def test_float_weights_are_refused_by_a_converted_model_and_change_nothing(model: SAM2Base, loaded: SAM2Base) -> None:
    before = copy.deepcopy(loaded.state_dict())
    for quantized in (loaded, copy.deepcopy(loaded), as_class(loaded, SAM2Base)):
        for options in ({"strict": False}, {"strict": True}, {"strict": False, "assign": True}):
            with pytest.raises(CheckpointError, match=r"proj\.weight is a float weight, and the model is converted"):
                quantized.load_state_dict({n: v + 1 for n, v in model.state_dict().items()}, **options)
    after = loaded.state_dict()
    biases = [name for name in before if name.endswith("bias")]
    assert biases
    assert all(torch.equal(after[name], before[name]) for name in biases)
    loaded.load_state_dict(before)


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return isinstance(value, (int, float, str, bool, type(None)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda m: m, copy.deepcopy, lambda m: copy.deepcopy(pickle.loads(pickle.dumps(m)))])
@pytest.mark.parametrize("kind", ["prepared", "loaded"])
def test_every_module_answers_as_in_float(
    model: SAM2Base, kind: str, make: Callable[[SAM2Base], SAM2Base], request: pytest.FixtureRequest
) -> None:
    quantized = make(request.getfixturevalue(kind))
    known = set(dir(nn.Module()))
    for path, module in model.named_modules():
        other = quantized.get_submodule(path)
        for name in set(dir(module)) - known:
            value = getattr(module, name)
            assert hasattr(other, name), f"{path} has no {name}"
            if _plain(value):
                assert getattr(other, name) == value, f"{path}.{name}"
    trunk, other = model.image_encoder.trunk, quantized.image_encoder.trunk
    for name, _ in quantized.named_parameters():
        assert other.get_layer_id(name) == trunk.get_layer_id(name)


class Constant:
    """Stands for the schedulers of fvcore, which SAM2's trainer needs and this package does not."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, where: float) -> float:
        return self.value


def _rates(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of every parameter, by the recipe that SAM2 ships for fine-tuning."""
    path = Path(str(files("sam2"))) / "configs" / "sam2.1_training" / "sam2.1_hiera_b+_MOSE_finetune.yaml"
    OmegaConf.register_new_resolver("divide", lambda a, b: a / b, replace=True)
    recipe = OmegaConf.load(path)
    optim = OmegaConf.merge({"scratch": recipe.scratch}, {"optim": recipe.trainer.optim}).optim
    for setting in (*optim.options.lr, *optim.options.weight_decay):
        value = setting.scheduler.get("start_value", setting.scheduler.get("value"))
        setting.scheduler = {"_target_": f"{__name__}.Constant", "value": value}
    optimizer = construct_optimizer(
        model, optim.optimizer, options_conf=optim.options, param_group_modifiers_conf=optim.param_group_modifiers
    )
    optimizer.step_schedulers(0.0, step=0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.slow
def test_sam2s_layer_decay_gives_every_parameter_its_rate(model: SAM2Base, prepared: SAM2Base) -> None:
    expected, rates = _rates(model), _rates(prepared)
    assert len({rate for rate, _ in expected.values()}) > 8  # two rates, and one for each block
    assert {name: rates[name] for name in expected} == expected
    for name in rates.keys() - expected.keys():
        owner = name.rpartition(".weight_fake_quant.")[0]
        if owner:  # a weight's range learns as fast as the weight
            assert rates[name][0] == expected[f"{owner}.weight"][0], name
