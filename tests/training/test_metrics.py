"""The log of a training: what a line holds, and that a resumed run leaves the lines of one that was not stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from qsam2_ao.errors import QSAM2Error
from qsam2_ao.quantizers import LSCFakeQuantize
from qsam2_ao.training.loop import TrainResult, train
from qsam2_ao.training.metrics import MetricsLog, check_log, read_metrics
from qsam2_ao.training.qat import Rates, qat_optimizer

STEPS = 7


class Quantized(nn.Module):
    """A layer with both kinds of quantizers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)
        self.weight_quantizer = LSCFakeQuantize(bits=2, is_weight=True)
        self.input_quantizer = LSCFakeQuantize(bits=4)
        self.weight_quantizer.initialize(self.layer.weight)
        with self.input_quantizer.calibrating():
            self.input_quantizer(batch_of(0))

    def forward(self, x):
        return nn.functional.linear(
            self.input_quantizer(x), self.weight_quantizer(self.layer.weight), self.layer.bias
        ).square().mean()  # fmt: skip


def batch_of(step):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def run(folder: Path, stop_at: int | None = None) -> None:
    model = Quantized()
    optimizer = qat_optimizer(model, Rates(1e-2, ranges=3.0))
    log = MetricsLog(folder / "log", model, optimizer, every=2, steps=STEPS)

    def batches(first):
        for step in range(first, STEPS):
            if step == stop_at:
                raise KeyboardInterrupt
            yield batch_of(step)

    train(
        model,
        batches,
        lambda output, batch: output,
        steps=STEPS,
        optimizer=optimizer,
        checkpoint=folder / "training.pt",
        checkpoint_every=3,
        on_step=lambda result: log(result, {"part": torch.tensor(2.0)}, 0.5 if result.step == 4 else None),
        progress=False,
    )
    log.close()


def test_lines(tmp_path: Path):
    run(tmp_path)
    lines = read_metrics(tmp_path / "log")
    assert [line["step"] for line in lines] == [1, 2, 4, 6, 7]
    last = lines[-1]
    assert last["loss/part"] == 2
    assert last["lr/ranges"] == pytest.approx(3 * last["lr/weights"])
    assert last["lr/vectors"] == last["lr/weights"]
    assert last["gradient_norm"] > 0
    assert 0 < last["ranges/drift"] <= last["ranges/largest_drift"]
    assert lines[0]["ranges/drift"] < last["ranges/drift"]
    assert 0 < last["clipped/weights"] < 1
    assert 0 <= last["clipped/inputs"] < 1
    assert last["seconds"] > 0
    assert [line.get("held_out") for line in lines] == [None, None, 0.5, None, None]
    assert list((tmp_path / "log").glob("events.out.tfevents.*")), "tensorboard is installed with the tests"


def test_the_share_of_clipped_values_is_the_quantizers(tmp_path: Path):
    model = Quantized()
    log = MetricsLog(tmp_path, model, qat_optimizer(model, Rates()), every=1, steps=1)
    result = train(model, lambda first: [batch_of(1)], lambda output, batch: output, steps=1, progress=False)
    codes_before = Quantized()
    scale, zero_point = codes_before.weight_quantizer.qparams()
    low, high = codes_before.weight_quantizer.codes
    codes = codes_before.layer.weight / scale[:, None] + zero_point[:, None]
    log(result, {})
    log.close()
    expected = ((codes < low - 0.5) | (codes > high + 0.5)).float().mean().item()
    assert read_metrics(tmp_path)[0]["clipped/weights"] == pytest.approx(expected)


def test_a_resumed_run_goes_on_in_the_same_file(tmp_path: Path):
    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=5)
    path = tmp_path / "broken" / "log" / "metrics.jsonl"
    # What a run that is killed leaves: steps that no checkpoint has, and half a line.
    path.write_text(path.read_text() + json.dumps({"step": 6, "loss": 1e9}) + '\n{"step": 7, "lo')
    run(tmp_path / "broken")
    whole, broken = (read_metrics(tmp_path / name / "log") for name in ("whole", "broken"))
    for line in (*whole, *broken):
        for timed in ("seconds", "clipped/inputs", "clipped/weights"):
            line.pop(timed, None)
    assert [line["step"] for line in broken] == [1, 2, 4, 6, 7]
    for first, second in zip(whole, broken, strict=True):
        # Drift counts from where the model was when the log began, which a resumed one takes before it loads.
        assert first == pytest.approx(second)


@pytest.mark.parametrize("content", [b'{"loss": 1}\n', b'{"step": 1}\nno\n{"step": 2}\n', b"[1]", b"\xff\n{}"])
def test_another_file_of_its_name_is_kept(tmp_path: Path, content: bytes):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(QSAM2Error, match=r"metrics\.jsonl.* choose another folder"):
        check_log(tmp_path)
    model = nn.Linear(6, 1)
    log = MetricsLog(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    with pytest.raises(QSAM2Error, match="choose another folder"):
        log(TrainResult(1, [0.5]), {})
    assert path.read_bytes() == content


def test_a_float_model_has_no_ranges(tmp_path: Path):
    model = nn.Linear(6, 1)
    log = MetricsLog(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), every=1, steps=1)
    result = train(model, lambda first: [batch_of(0)], lambda y, b: y.square().mean(), steps=1, progress=False)
    log(result, {})
    log.close()
    (line,) = read_metrics(tmp_path)
    assert not [name for name in line if name.startswith(("ranges", "clipped", "lr/ranges"))]
