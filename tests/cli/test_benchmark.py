from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from qsam2_ao.benchmark.accuracy import experiment, publish
from qsam2_ao.benchmark.accuracy.experiment import Budget
from qsam2_ao.benchmark.accuracy.store import ExperimentStore
from qsam2_ao.benchmark.gpu import publish as gpu_publish
from qsam2_ao.training.qat import Rates


def once(draw):
    """The pictures of one run serve the next: each takes a calibration and a training."""
    drawn = []

    def draw_or_remember(*arguments):
        if not drawn:
            drawn.append(draw(*arguments))
        return drawn[0]

    return draw_or_remember


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_a_benchmark_writes_results_report_and_pictures_and_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        experiment, "QUICK", Budget(steps=1, images=1, videos=2, frames=3, search_videos=1, rates=(Rates(1e-4),))
    )
    for name in ("illustrate_weights", "illustrate_training"):
        monkeypatch.setattr(publish, name, once(getattr(publish, name)))
    arguments = ["benchmark", "accuracy", "--quick", "--method", "float", "--method", "VRC+LSC", "-o", tmp_path]
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    records = json.loads(result.stdout)
    assert {record["method"] for record in records} == {"float", "VRC+LSC"}
    assert {record["metric"] for record in records} >= {"J&F", "mIoU_box", "mIoU_1click", "mIoU_3click"}
    assert json.loads((tmp_path / "accuracy.json").read_text()) == records
    report = (tmp_path / "accuracy.md").read_text()
    for name in ("accuracy_bytes", "weights", "ranges", "masks"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"{name}.png" in report
    assert not (tmp_path / "accuracy_bits.png").exists()  # of 8-bit inputs, and the quick plan's are of 4 bits
    assert "accuracy_bits.png" not in report
    before = (tmp_path / "accuracy_cells.jsonl").read_text()
    again = run("benchmark", "accuracy", "--quick", "--report-only", "-o", tmp_path)
    assert "2 experiments" in again.stdout
    assert (tmp_path / "accuracy_cells.jsonl").read_text() == before
    (cell,) = [json.loads(line) for line in before.splitlines() if '"VRC+LSC"' in line and '"seed"' in line]
    ExperimentStore(tmp_path / "accuracy_cells.jsonl").append(cell | {"setting": "W2A8"})
    run("benchmark", "accuracy", "--quick", "--report-only", "-o", tmp_path)
    assert (tmp_path / "accuracy_bits.png").read_bytes().startswith(b"\x89PNG")
    assert "accuracy_bits.png" in (tmp_path / "accuracy.md").read_text()


def test_an_unknown_method_is_refused(run, tmp_path):
    result = run("benchmark", "accuracy", "--quick", "--method", "magic", "-o", tmp_path)
    assert result.exit_code == 2
    assert "unknown method 'magic'; the methods are" in result.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_costs_are_measured_and_an_interruption_loses_no_part(run, tmp_path, monkeypatch):
    from qsam2_ao.benchmark.training import publish as training_publish
    from qsam2_ao.benchmark.training import steps, trainee
    from qsam2_ao.benchmark.training.trainee import TrainingWorkload

    monkeypatch.setattr(trainee, "EMBEDDED", TrainingWorkload("embedded", 96, 1, 2, 1))
    monkeypatch.setattr(steps, "_WARM_UP", 1)
    monkeypatch.setattr(training_publish, "added_time", partial(steps.added_time, steps=1))
    arguments = ["benchmark", "training", "--quick", "--rounds", "1", "-o", tmp_path]
    with monkeypatch.context() as broken:
        broken.setattr(training_publish, "memory_records", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments).exit_code == 130
    kept = list((tmp_path / "training.work").glob("*/embedded-steps-eager.json"))
    assert len(kept) == 1
    monkeypatch.setattr(training_publish, "measure_steps", lambda *_, **__: pytest.fail("measured again"))
    memory_records = training_publish.memory_records

    def of_one_method(workload, methods, **options):
        return memory_records(workload, methods[:1], **options)  # each takes a process

    monkeypatch.setattr(training_publish, "memory_records", of_one_method)
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {record["metric"] for record in found} == {"step seconds", "step ratio", "memory GiB"}
    assert json.loads((tmp_path / "training.json").read_text()) == found
    assert "## Targets" in (tmp_path / "training.md").read_text()
    assert not (tmp_path / "training.work").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_needs_one(run, tmp_path):
    result = run("benchmark", "gpu", "-o", tmp_path)
    assert result.exit_code == 2
    assert "cannot be used" in result.stderr
    result = run("benchmark", "gpu", "-o", tmp_path, "--model", "sam2.1-q")
    assert result.exit_code == 2
    assert "unknown model 'sam2.1-q'; choose from sam2-t" in result.stderr


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_wrong_results_of_a_gpu_are_an_error(run, tmp_path, monkeypatch, options):
    found = {"correctness": [{"what": "attention", "passed": False}], "failed": {}, "left": []}
    monkeypatch.setattr(gpu_publish, "publish_gpu", lambda *_, **__: found)
    result = run("benchmark", "gpu", "-o", tmp_path, *options)
    assert result.exit_code == 1
    assert "wrong results: attention" in result.stderr
    assert not options or json.loads(result.stdout) == found
