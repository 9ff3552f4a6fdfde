"""The kernels of LSC's statistics and range against float64 and torch's operators, in Triton's interpreter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from qsam2_ao.errors import NonFiniteError
from qsam2_ao.quantizers import (
    LSCFakeQuantize,
    lsc_function,
    lsc_range,
    lsc_range_triton,
    lsc_training,
    scalar_ranges,
    statistics,
)
from qsam2_ao.quantizers.grids import activation_grid, weight_grid
from qsam2_ao.quantizers.lsc_range_triton import _range, _statistics, activation_range, weight_range
from qsam2_ao.quantizers.pool import Pool

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
NAMES = ("mean", "std", "low", "high")


def samples(number: int, shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) * (1 + 0.3 * i) + 0.4 * i for i in range(number)]


@contextmanager
def on_kernels(monkeypatch: pytest.MonkeyPatch, fused: bool) -> Iterator[None]:
    """Tensors of the CPU are treated as a GPU's: nothing is of Python numbers."""
    with monkeypatch.context() as patch:
        for module in (lsc_function, lsc_training):
            patch.setattr(module, "fused", lambda x: fused)
            patch.setattr(module, "on_its_device", lambda kernel: kernel, raising=False)
        for module in (scalar_ranges, statistics, lsc_range, lsc_training):
            patch.setattr(module, "on_host", lambda x: False)
        yield


@pytest.mark.parametrize("grid", ["midrise", "symmetric", "asymmetric", "mean"])
@pytest.mark.parametrize(("granularity", "group_size"), [("tensor", None), ("channel", None), ("group", 7)])
@pytest.mark.parametrize("shape", [(6, 40), (5, 3, 3, 3), (3, 2500), (200, 9)])
def test_a_weights_range_is_that_of_float64(
    grid: str, granularity: str, group_size: int | None, shape: tuple[int, ...]
) -> None:
    codes = weight_grid(grid, 4)
    (x,) = samples(1, shape)
    x = x + 0.2
    rows = x.double().numpy().reshape(1 if granularity == "tensor" else shape[0], -1)
    size = group_size or rows.shape[1]
    found = [[row[i : i + size] for i in range(0, rows.shape[1], size)] for row in rows]
    values = np.array([[_summary(part, codes.zero_centred) for part in row] for row in found])
    values = values if granularity == "group" else values[:, 0]
    expected = torch.from_numpy(values).unbind(-1)
    alpha_bar = torch.full(expected[0].shape, 1.7)
    own = [torch.empty_like(alpha_bar) for _ in NAMES]
    clip = weight_range(x, codes, granularity, group_size, own, (alpha_bar, torch.full_like(alpha_bar, 0.3)), 0.01)
    for one, other in zip(own, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6)
    want = codes.clip_range(statistics.RangeStats(*(t.float() for t in expected)), alpha_bar)
    for name in ("scale", "zero_point", "scale_per_alpha"):
        torch.testing.assert_close(getattr(clip, name), getattr(want, name), rtol=1e-5, atol=1e-5)
    assert torch.equal(clip.at_limit, want.at_limit)
    torch.testing.assert_close(clip.factor, want.scale_per_alpha * 0.01 * np.exp(0.3))


def _summary(part: np.ndarray, zero_centred: bool) -> tuple[float, ...]:
    mean = 0.0 if zero_centred else part.mean()
    return mean, np.sqrt(((part - mean) ** 2).mean()), part.min(), part.max()


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_activations_pool_is_that_of_all_calls_in_float64(
    offset: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More parts than a program joins at a time, and a spread that is small beside the mean."""
    monkeypatch.setattr(lsc_range_triton, "_PARTS", 8)
    calls = [(t + offset).to(dtype) for t in (*samples(2, (30, 2050)), torch.randn(5))]
    one = torch.ones(1)
    pool: Pool | None = None
    running = [torch.zeros(1) for _ in NAMES]
    base = (one * 0, one, -one, one)
    for x in calls:
        clip, pool = activation_range(x, activation_grid(8), base, pool, running, (one, one * 0), 0.75, 1.0, True)
    assert pool is not None
    everything = np.concatenate([x.double().numpy().ravel() for x in calls])
    assert pool.count == everything.size
    expected = torch.tensor(_summary(everything, False))
    found = torch.cat(pool.statistics()).double()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(
        torch.cat(running).double(), torch.cat(base) * 0.75 + expected * 0.25, rtol=2e-6, atol=2e-6
    )
    assert clip.scale.item() == pytest.approx(2 / 255), "of the step's beginning"


def train(quantizer: LSCFakeQuantize, calls: list[Tensor]) -> list[Tensor]:
    """Steps of two calls each; outputs, gradients of alpha and running statistics."""
    quantizer = copy.deepcopy(quantizer).train()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    results = []
    for first, second in zip(calls[::2], calls[1::2], strict=True):
        optimizer.zero_grad()
        outs = [quantizer(first), quantizer(second)]
        sum(((out - x) ** 2).sum() + out.sum() for out, x in zip(outs, (first, second), strict=True)).backward()
        results += [*outs, quantizer.log_alpha.grad.clone()]
        optimizer.step()
        results += [getattr(quantizer, name).clone() for name in (*NAMES, "alpha_bar")]
    return [t.detach() for t in results]


@pytest.mark.parametrize("is_weight", [False, True])
def test_training_learns_what_it_learns_by_torchs_operators(is_weight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = samples(8, (12, 50))
    quantizer = LSCFakeQuantize(4, is_weight=is_weight)
    if is_weight:
        quantizer.initialize(calls[0])
    results = []
    for fused in (False, True):
        with on_kernels(monkeypatch, fused):
            results.append(train(quantizer, calls))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-4, atol=2e-4)


def test_not_a_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer = LSCFakeQuantize(8, name="fc1").train()
    x = torch.randn(3, 5)
    with on_kernels(monkeypatch, fused=True):
        quantizer(x)
        x[1, 2] = float("nan")
        with pytest.raises(NonFiniteError, match="fc1"):
            quantizer(x)


class Launches(TorchDispatchMode):
    """Counts torch's operators that a GPU would launch a kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def count(self, launched: int) -> None:
        self.number += launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        self.count(not (views or name.startswith(("empty", "new_empty", "detach", "split", "unbind", "_reshape"))))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("is_weight", "before", "after"), [(False, 65, 2), (True, 18, 2)])
def test_launches_of_a_calls_range(is_weight: bool, before: int, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What docs/how-to/deploy-gpu.md says; the second call of a step, as the first also keeps the step's beginning."""
    x = torch.randn(6, 40)
    counts = []
    for fused in (False, True):
        with on_kernels(monkeypatch, fused):
            quantizer = LSCFakeQuantize(8, is_weight=is_weight).train()
            monkeypatch.setattr(quantizer, "_check_finite", lambda *_: None)  # of a GPU, looks at every eighth call
            monkeypatch.setattr(quantizer, "_alpha_moved", lambda: False)  # of a GPU, compares versions
            quantizer(x)
            quantizer.training_range(x)
            with Launches() as launches, monkeypatch.context() as patch:
                for kernel in (_statistics, _range):  # not run: the interpreter calls operators of its own
                    patch.setattr(kernel, "run", lambda *args, **constants: launches.count(1))
                quantizer.training_range(x)
            counts.append(launches.number)
    assert counts == [before, after]
