"""Old names that scripts use go on working, with a word of where they went."""

from __future__ import annotations

import importlib
import sys

import pytest
from sam2.modeling.sam2_base import SAM2Base

import qsam2_ao
from qsam2_ao.deploy.inputs import ActivationQuantizer


def test_the_quantizer_of_inputs_is_found_by_its_old_path() -> None:
    sys.modules.pop("qsam2_ao.lowering.activation", None)
    with pytest.warns(DeprecationWarning, match=r"moved to qsam2_ao\.deploy\.inputs"):
        old = importlib.import_module("qsam2_ao.lowering.activation")
    assert old.ActivationQuantizer is ActivationQuantizer


def test_rehouse_is_as_class() -> None:
    with pytest.warns(DeprecationWarning, match="as_class"):
        model = qsam2_ao.rehouse(qsam2_ao.build_embedded(), SAM2Base)
    assert type(model) is SAM2Base
