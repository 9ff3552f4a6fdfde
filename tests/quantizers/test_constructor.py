from __future__ import annotations

import copy

import pytest
import torch
from torch.ao.quantization import QConfig
from torch.ao.quantization.observer import _PartialWrapper
from torch.ao.quantization.qconfig import qconfig_equals
from torchao.quantization.pt2e import PartialWrapper

from qsam2_ao import LSCFakeQuantize
from qsam2_ao.errors import QConfigError


def test_both_flows_know_a_constructor_and_find_its_class():
    make = LSCFakeQuantize.with_args(bits=4, is_weight=True).with_args(grid="symmetric", bits=3)
    assert isinstance(make, PartialWrapper)
    assert isinstance(make, _PartialWrapper)
    assert make.p.func is LSCFakeQuantize  # torchao asks for its name
    quantizer = make.with_args(momentum=0.5)()
    assert (quantizer.bits, quantizer.grid, quantizer.momentum) == (3, "symmetric", 0.5)
    assert copy.deepcopy(make)().bits == 3


def test_callable_arguments_stay_with_later_ones():
    make = LSCFakeQuantize.with_args(bits=4).with_callable_args(name=lambda: "fc").with_args(momentum=0.5)
    assert (make().name, make().momentum, make(name="other").name) == ("fc", 0.5, "other")


def test_equal_qconfigs_stay_equal():
    def qconfig(bits):
        return QConfig(LSCFakeQuantize.with_args(bits=8), LSCFakeQuantize.with_args(bits=bits, is_weight=True))

    assert qconfig_equals(qconfig(4), qconfig(4))
    assert not qconfig_equals(qconfig(4), qconfig(2))


@pytest.mark.parametrize(
    ("settings", "spec"),
    [
        ({"bits": 8, "is_weight": True}, {"quant_min": -127, "quant_max": 127, "qscheme": torch.per_channel_symmetric}),
        ({"bits": 8, "is_weight": True}, {"quant_min": -128, "quant_max": 127}),
        ({"bits": 4, "is_weight": True}, {"quant_min": -8, "quant_max": 7}),
        ({"bits": 4, "is_weight": True}, {"quant_min": -15, "quant_max": 15}),
        ({"bits": 4, "is_weight": True, "grid": "asymmetric"}, {"qscheme": torch.per_channel_affine}),
        ({"bits": 8}, {"quant_min": -128, "quant_max": 127, "dtype": torch.int8}),
        ({"bits": 8}, {"dtype": torch.quint8, "qscheme": torch.per_tensor_affine, "is_dynamic": False}),
    ],
)
def test_a_spec_that_agrees_is_taken(settings, spec):
    LSCFakeQuantize.with_args(**settings).with_args(**spec)()


def test_a_per_tensor_scheme_sets_a_weights_granularity():
    assert LSCFakeQuantize(4, is_weight=True, qscheme=torch.per_tensor_symmetric).granularity == "tensor"


@pytest.mark.parametrize(
    ("settings", "spec", "message"),
    [
        ({"bits": 8, "is_weight": True}, {"quant_min": -8, "quant_max": 7}, r"with_args\(bits=4\)"),
        ({"bits": 4}, {"quant_min": 0, "quant_max": 255}, r"with_args\(bits=8\)"),
        ({"bits": 8}, {"qscheme": torch.per_channel_symmetric}, "is_weight=True"),
        ({"bits": 8}, {"qscheme": torch.per_tensor_symmetric}, "affine qscheme"),
        (
            {"bits": 4, "is_weight": True, "granularity": "channel"},
            {"qscheme": torch.per_tensor_symmetric},
            "granularity='tensor'",
        ),
        ({"bits": 4, "is_weight": True, "grid": "asymmetric"}, {"qscheme": torch.per_channel_symmetric}, "symmetric"),
        ({"bits": 8}, {"is_dynamic": True}, "not dynamic"),
        ({"bits": 8}, {"dtype": torch.float16}, "int8 or uint8"),
    ],
)
def test_a_spec_that_contradicts_is_refused(settings, spec, message):
    with pytest.raises(QConfigError, match=message):
        LSCFakeQuantize.with_args(**settings).with_args(**spec)()
