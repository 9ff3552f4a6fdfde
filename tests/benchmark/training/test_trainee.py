from __future__ import annotations

import pytest
import torch
from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

from qsam2_ao.benchmark.processes import alone, peak_bytes
from qsam2_ao.benchmark.training import steps
from qsam2_ao.benchmark.training.memory import calibration_cost, training_memory
from qsam2_ao.benchmark.training.records import memory_records
from qsam2_ao.benchmark.training.steps import added_time, measure_steps
from qsam2_ao.benchmark.training.trainee import COMPARED, FUSED, Trainee, TrainingWorkload
from qsam2_ao.recipe import quantized_layers

SMALL = TrainingWorkload("embedded", 96, 1, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", COMPARED)
def test_a_step_trains_every_kind_of_quantizer(method):
    trainee = Trainee(SMALL, method)
    weight = trainee.model.get_submodule("image_encoder.trunk.blocks.1.attn.qkv").weight
    before = weight.detach().clone()
    assert trainee.step(0) > 0
    assert not torch.equal(weight, before)
    assert bool(torch.isfinite(weight).all())
    quantizers = [layer.weight_fake_quant for _, layer in quantized_layers(trainee.model)]
    assert bool(quantizers) == (method != "float")
    if method == FUSED:
        assert all(isinstance(q, FusedMovingAvgObsFakeQuantize) for q in quantizers)
        assert {(q.quant_min, q.quant_max) for q in quantizers} == {(-8, 7)}


@pytest.mark.slow
def test_steps_are_compared_with_the_float_step_of_the_same_round(monkeypatch):
    monkeypatch.setattr(steps, "_WARM_UP", 1)
    records = measure_steps(SMALL, ("float", "LSC"), 2, progress=False)
    found = {(r["method"], r["metric"]): r for r in records}
    assert set(found) == {(m, k) for m in ("float", "LSC") for k in ("step seconds", "step ratio")}
    assert found["float", "step ratio"]["value"] == found["float", "step ratio"]["high"] == 1
    ours = found["LSC", "step ratio"]
    assert 1 < ours["low"] <= ours["value"] <= ours["high"]


@pytest.mark.slow
def test_what_a_method_adds_is_named():
    added = added_time(SMALL, "LSC", steps=1, shown=5)
    assert len(added) == 5
    assert any("LSC" in name for name, _ in added)
    assert [seconds for _, seconds in added] == sorted((seconds for _, seconds in added), reverse=True)


@pytest.mark.slow
def test_memory_is_that_of_the_process_alone():
    ballast = torch.ones(1 << 27)  # 512 MiB, which no child may count
    assert peak_bytes() > ballast.nbytes
    record = memory_records(SMALL, ("float",), progress=False)[0]
    assert record["metric"] == "memory GiB"
    assert 0.01 < record["value"] < 0.45
    assert alone(training_memory, SMALL, "LSC") > 0


@pytest.mark.slow
def test_calibration_takes_more_than_its_forward_passes():
    cost = calibration_cost(SMALL, 2)
    assert cost["VRC seconds"] > cost["forward seconds"] > 0
    assert cost["VRC memory"] >= 0
