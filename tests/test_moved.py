"""Old paths and names that scripts use go on working, with a word of where they went."""

from __future__ import annotations

import importlib
import sys

import pytest
from sam2.modeling.sam2_base import SAM2Base

import qsam2_ao

MOVED = [
    ("fake_quant", "fake_quantizers", "recipe"),
    ("fake_quant", "quantized_layers", "recipe"),
    ("backend_config", "qsam2_backend_config", "recipe.backend"),
    ("qconfig", "lsc_qconfig", "recipe"),
    ("calibration.scaling", "scale_groups", "calibration.scale_groups"),
    ("lowering.activation", "ActivationQuantizer", "deploy.inputs"),
]


@pytest.mark.parametrize(("old", "name", "new"), MOVED)
def test_the_old_path_warns_and_gives_the_same(old: str, name: str, new: str) -> None:
    sys.modules.pop(f"qsam2_ao.{old}", None)
    with pytest.warns(DeprecationWarning, match=rf"qsam2_ao\.{old} has moved to qsam2_ao\.{new}"):
        module = importlib.import_module(f"qsam2_ao.{old}")
    assert getattr(module, name) is getattr(importlib.import_module(f"qsam2_ao.{new}"), name)


def test_rehouse_is_as_class() -> None:
    with pytest.warns(DeprecationWarning, match="as_class"):
        model = qsam2_ao.rehouse(qsam2_ao.build_embedded(), SAM2Base)
    assert type(model) is SAM2Base
