"""The benchmark of a GPU, as far as there need not be one: Triton's interpreter stands in for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import nn

from qsam2_ao.benchmark.gpu import correctness, encoders, pieces, publish
from qsam2_ao.benchmark.gpu.clock import Clock
from qsam2_ao.benchmark.gpu.publish import Step, plan, publish_gpu, take_steps, write_results
from qsam2_ao.benchmark.inference.workload import InferenceWorkload
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.native import why_no_kernels
from qsam2_ao.workspace import Workspace

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


class Tiny(InferenceWorkload):
    """The embedded architecture with random weights."""

    def build(self) -> SAM2Base:
        torch.manual_seed(0)
        return build_embedded(SAM2VideoPredictor).eval()

    def image(self) -> np.ndarray:
        return np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny("sam2.1-t", 96, 1, tmp_path_factory.mktemp("files"))


def test_all_operators_are_checked_and_right() -> None:
    pytest.importorskip("triton")
    records = correctness.check_operators(DEVICE, tiles=1)
    assert len(records) > 15
    assert [record["what"] for record in records if not record["passed"]] == []


def test_a_wrong_kernel_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    right = correctness.kernels()
    off = {**right, "quantize": lambda x, *grid: right["quantize"](x + 0.037, *grid)}
    monkeypatch.setattr(correctness, "kernels", lambda: off)
    (codes, *_) = correctness._rounding(DEVICE)
    assert not codes["passed"]
    assert not correctness._record("lost", float("nan"), 1)["passed"]


@no_gpu
def test_products_are_timed_beside_torchs() -> None:
    pytest.importorskip("triton")
    (record,) = pieces.time_products([(32, 64, 64)], CPU, bits=[4], rounds=1)
    assert record["chosen"] in record["ms"]
    assert record["best"] in record["ms"]
    assert record["int_mm"] > 0
    assert record["bf16"] > 0
    assert all(ms > 0 for ms in record["ms"].values())


@no_gpu
def test_attention_is_timed_by_every_backend() -> None:
    pytest.importorskip("triton")
    (record,) = pieces.time_attention(CPU, {"narrow": (1, 1, 32, 64, 32, 16)}, rounds=1)
    assert record["ms"]["math"] > 0
    assert record["ms"]["qsam2"] > 0
    assert record["ms"]["cudnn_attention"] is None, "which CPUs have not"


@no_gpu
@pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
def test_an_encoder_is_timed_profiled_and_asked_for_its_products(tiny: Tiny) -> None:
    record = encoders.time_encoder(tiny, "qsam2 W4A8", 2, CPU)
    assert record["ms"] > 0
    assert (record["model"], record["size"], record["batch"]) == ("sam2.1-t", 96, 2)
    (row, *_) = encoders.profile_encoder(tiny, "qsam2 W4A8", CPU)
    assert row["us"] > 0
    encoder = encoders.METHODS["qsam2 W4A8"](tiny, CPU)
    with torch.inference_mode():
        shapes = pieces.products_of(encoder, lambda: encoder(torch.zeros(1, 3, 96, 96)))
    assert shapes
    assert all(rows > 0 and n > 0 and k % 4 == 0 for rows, n, k in shapes)
    assert not any(module._forward_hooks for module in encoder.modules())


@no_gpu
def test_the_baseline_is_timed_and_profiled(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: None)  # which takes minutes
    assert encoders.time_encoder(tiny, encoders.BASELINE, 1, CPU)["ms"] > 0
    assert encoders.profile_encoder(tiny, encoders.BASELINE, CPU)


@no_gpu
@pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
def test_a_model_is_compared_with_the_cpu(tiny: Tiny) -> None:
    (record,) = correctness.check_model(tiny, "w4a8", CPU)
    assert record["passed"]
    assert record["worst"] > 0


def test_steps_are_kept_failures_told_and_the_rest_left(tmp_path: Path) -> None:
    calls = []

    def fail() -> None:
        raise RuntimeError("out of shared memory")

    def work() -> list[dict[str, int]]:
        calls.append(1)
        return [{"value": 3}]

    steps = [Step("a", "good", work), Step("b", "bad", fail)]
    kept = Workspace(tmp_path / "gpu.work", {})
    for _ in range(2):
        found = take_steps(kept, steps, 1)
        assert found["a"] == [{"step": "good", "value": 3}]
        assert found["failed"] == {"bad": "RuntimeError: out of shared memory"}
        assert found["left"] == []
    assert len(calls) == 1, "what is kept is not measured again"
    found = take_steps(kept, [*steps, Step("b", "late", work)], 0)
    assert found["a"], "what is kept is there, however late it is"
    assert found["left"] == ["bad", "late"]


def test_the_report_shows_ratios_failures_and_what_is_left(tmp_path: Path) -> None:
    where = {"step": "s", "model": "sam2.1-t", "size": 1024, "batch": 1, "memory_mb": 500}
    product = {"step": "s", "rows": 10, "n": 4, "k": 8, "bits": 4, "int_mm": None, "bf16": 0.3}
    results = {
        "correctness": [{"step": "s", "what": "sums", "worst": 2.0, "allowed": 0.0, "passed": False}],
        "encoders": [
            {**where, "method": encoders.BASELINE, "ms": 2.0},
            {**where, "method": "qsam2 W4A8", "ms": 1.25},
        ],
        "products": [{**product, "ms": {"a": 0.2, "b": 0.1}, "chosen": "a", "best": "b"}],
        "attention": [{"step": "s", "attention": "memory", "ms": {"math": 1.0, "cudnn": None}}],
        "training": [{"step": "s", "workload": "t", "method": "LSC", "metric": "step ratio", "value": 1.4}],
        "profile": [{"step": "s", "kernel": "a|b", "calls": 2, "us": 7.5}],
        "failed": {"x": "RuntimeError: no"},
        "left": ["y"],
    }
    write_results(tmp_path, results, {"gpu": "H100"})
    text = (tmp_path / "gpu.md").read_text()
    assert "| sam2.1-t | 1024 | 1 | qsam2 W4A8 | 1.25 | 1.60 | 1.35 | 500 |" in text
    assert "| sums | 2 | 0 | **no** |" in text
    assert "| 10 x 4 x 8 | 4 | a | 0.2 | b | 0.1 | 2.00 | - | 0.3 |" in text
    assert "| memory | 1.0 | - |" in text
    assert "- x: RuntimeError: no" in text
    assert "- y" in text
    assert json.loads((tmp_path / "gpu.json").read_text())["environment"] == {"gpu": "H100"}


def test_the_plan_begins_with_what_is_right(tmp_path: Path) -> None:
    workloads = [InferenceWorkload(name, 1024, 1, tmp_path) for name in ("sam2.1-t", "sam2.1-b+")]
    steps = plan(workloads, torch.device("cuda"))
    assert [step.kind for step in steps[:3]] == ["correctness"] * 3
    assert len({step.name for step in steps}) == len(steps), "each has a file of its own"
    assert len([step for step in steps if step.kind == "encoders"]) == 2 * 2 * len(encoders.METHODS)


@no_gpu
def test_without_a_gpu_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QSAM2Error, match="has no GPU"):
        publish_gpu(tmp_path)
    with pytest.raises(QSAM2Error, match="for NVIDIA GPUs, not for cpu"):
        publish_gpu(tmp_path, device="cpu")
    assert not (tmp_path / "gpu.md").exists()


def test_models_are_quantized_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "InferenceWorkload", Tiny)
    assert publish_gpu(tmp_path, models=["sam2.1-t"], size=96, prepare=True) == {}
    names = {path.name for path in (tmp_path / "gpu.work" / "files").iterdir()}
    assert names == {"sam2.1-t-96px-w8a8.safetensors", "sam2.1-t-96px-w4a8.safetensors"}


def test_a_clock_takes_the_median_of_few_calls() -> None:
    calls = []
    assert Clock(CPU).milliseconds(lambda: calls.append(1), rounds=4) >= 0
    assert len(calls) == 6
