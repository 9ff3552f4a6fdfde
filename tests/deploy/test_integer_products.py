"""What the targets that multiply integers say of a layer that is no sum of integer products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.deploy.integer_products import why_no_integer_products
from qsam2_ao.deploy.kernels.linear import why_not_int8
from qsam2_ao.deploy.onednn.linear import why_not_onednn
from qsam2_ao.deploy.onednn.processor import why_no_onednn
from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.native import why_no_kernels


@dataclass
class Runner:
    name: str
    why_not: Callable[..., str | None]
    missing: str | None


RUNNERS = [
    Runner("the int8 kernels", why_not_int8, why_no_kernels()),
    Runner("oneDNN's int8 products", why_not_onednn, why_no_onednn(torch.device("cpu"))),
]
QUANTIZER = ActivationQuantizer(0, 255, 0.02, 117.0)


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.name)
def runner(request: pytest.FixtureRequest) -> Runner:
    if request.param.missing is not None:
        pytest.skip(request.param.missing)
    return request.param


def packed(outputs: int, inputs: int, **group: int) -> PackedIntxTensor:
    """All codes of 8 bits at the far end of their grid."""
    scale = torch.ones(outputs, inputs // group["group_size"]) if group else torch.ones(outputs)
    codes = torch.zeros(outputs, inputs, dtype=torch.uint8)
    return PackedIntxTensor.from_codes(codes, scale, torch.full_like(scale, 128.0), 8, **group)


def test_each_reason_names_who_would_run_the_layer(runner: Runner) -> None:
    layer = nn.Linear(8, 4)
    assert runner.why_not(layer, packed(4, 8), "cpu", QUANTIZER) is None
    for said, weight, quantizer in (
        ("Its input is not quantized", packed(4, 8), None),
        ("Its weight has scales per group", packed(4, 8, group_size=4), QUANTIZER),
        ("with an integer zero point", packed(4, 8), ActivationQuantizer(0, 255, 0.1, 3.5)),
        ("up to 8 bits", packed(4, 8), ActivationQuantizer(0, 511, 0.1, 3.0)),
    ):
        reason = str(runner.why_not(layer, weight, "cpu", quantizer))
        assert said in reason
        assert f", and {runner.name} " in reason
        assert reason == why_no_integer_products(layer, weight, quantizer, runner.name)
    assert "is neither nn.Linear nor nn.Conv2d" in str(runner.why_not(nn.Bilinear(8, 8, 4), packed(4, 8), "cpu"))


def test_sums_fit_32_bits_or_are_refused(runner: Runner) -> None:
    """Of 255 and -128: 65,792 products fit, four more do not."""
    for inputs, fits in ((65792, True), (65796, False)):
        reason = runner.why_not(nn.Linear(inputs, 2, device="meta"), packed(2, inputs), "cpu", QUANTIZER)
        assert (reason is None) == fits
        assert fits or f"Its sums of {inputs} products may reach" in str(reason)
