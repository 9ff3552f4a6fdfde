"""SAWB and PACT against what fms-model-optimizer computed (golden.json, written by make_golden.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from qsam2_ao.benchmark.accuracy.rivals import PACTFakeQuantize, SAWBFakeQuantize

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float32)


@pytest.mark.parametrize("case", GOLDEN["sawb"], ids=lambda case: f"{case['bits']} bits")
def test_sawb_is_fms_model_optimizers(case):
    weight = tensor(case["weight"]).requires_grad_()
    quantizer = SAWBFakeQuantize(case["bits"])
    quantizer.initialize(weight)
    output = quantizer(weight)
    output.backward(tensor(case["upstream"]))
    torch.testing.assert_close(quantizer.clip, tensor(case["clip"]), rtol=1e-5, atol=0)
    torch.testing.assert_close(output.detach(), tensor(case["output"]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weight.grad, tensor(case["weight_grad"]), rtol=0, atol=0)


@pytest.mark.parametrize("case", GOLDEN["pact"], ids=lambda case: f"{case['bits']} bits {case['clips']}")
def test_pact_is_fms_model_optimizers(case):
    x = tensor(case["x"]).requires_grad_()
    quantizer = PACTFakeQuantize(case["bits"])
    quantizer.initialize(x)
    low, high = quantizer.clip_low, quantizer.clip_high
    with torch.no_grad():
        low.fill_(case["clips"][0])
        high.fill_(case["clips"][1])
    output = quantizer(x)
    output.backward(tensor(case["upstream"]))
    torch.testing.assert_close(output.detach(), tensor(case["output"]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(x.grad, tensor(case["x_grad"]), rtol=0, atol=0)
    torch.testing.assert_close(torch.cat([low.grad, high.grad]), tensor(case["clips_grad"]), rtol=1e-5, atol=1e-6)
