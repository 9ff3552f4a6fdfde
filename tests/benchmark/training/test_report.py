from __future__ import annotations

from qsam2_ao.benchmark.training.report import markdown

PLACE = {"workload": "toy", "device": "cpu", "mode": "eager"}


def record(method, metric, value, **more):
    return {**PLACE, "method": method, "metric": metric, "value": value, **more}


def test_targets_are_judged_and_every_record_is_listed():
    records = [
        record("float", "step ratio", 1.0, low=1.0, high=1.0),
        record("LSC", "step ratio", 1.25, low=1.2, high=1.4),
        record("FusedMovingAvgObsFakeQuantize", "step ratio", 1.2, low=1.1, high=1.3),
        record("float", "memory GiB", 2.0),
        record("LSC", "memory GiB", 2.5),
        record("VRC", "time ratio", 1.5),
        record("VRC", "memory GiB", 2.9),
    ]
    text = markdown(records, {"toy": [("aten::mul", 0.0123)]}, {"cores": "2"}, "qsam2 benchmark training")
    assert "| toy, cpu, eager | step by LSC / float step | 1.25 | 1.3 | yes |" in text
    assert "| toy, cpu, eager | step by LSC / by FusedMovingAvgObsFakeQuantize | 1.04 | 1.0 | no |" in text
    assert "| toy, cpu, eager | memory of LSC / float | 1.25 | 1.3 | yes |" in text
    assert "| toy, cpu, eager | VRC / forward passes over its images | 1.50 | 1.2 | no |" in text
    assert "| toy, cpu, eager | VRC's memory, GiB | 2.90 | 3.0 | yes |" in text
    assert "| toy, cpu, eager | LSC | step ratio | 1.25 [1.20, 1.40] |" in text
    assert "| `aten::mul` | 12.3 |" in text
    assert "- cores: 2" in text


def test_without_measurements_there_are_no_targets():
    assert "| yes |" not in markdown([], {}, {}, "command")
