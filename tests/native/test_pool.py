"""The memory that the CPU's kernels keep: given back on request and when they idle, in forked processes too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest
import torch
from processes import resident
from torch import Tensor

from qsam2_ao.native import build, load_kernels, trim_pool, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
MIB = 2**20


def large(value: float) -> Tensor:
    """32 MiB of the pool."""
    load_kernels()
    one = torch.ones(256)
    return torch.ops.qsam2.layer_norm(
        torch.full((2**16, 256), value), one, one * value, 1e-6, torch.bfloat16, 1.0, 0.0, 255
    )


def test_memory_goes_back_on_request_and_results_stay() -> None:
    kept = large(3.0)
    del_me = large(1.0)
    before = resident()
    del del_me
    assert trim_pool() >= 32 * MIB
    assert resident() < before - 24 * MIB
    assert trim_pool() == 0
    assert torch.equal(kept, torch.full_like(kept, 3.0))


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    large(1.0)
    child = os.fork()
    if child == 0:
        freed = trim_pool()
        large(2.0)
        os._exit(not (freed >= 32 * MIB and trim_pool() >= 32 * MIB))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert trim_pool() >= 32 * MIB, "the child's was another"


def test_before_the_kernels_are_loaded_there_is_nothing_to_give_back(monkeypatch: pytest.MonkeyPatch) -> None:
    large(1.0)
    with monkeypatch.context() as patch:
        patch.setattr(build, "_loaded", set())
        assert trim_pool() == 0
    assert trim_pool() >= 32 * MIB


def until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@pytest.mark.slow
def test_memory_goes_back_when_the_kernels_idle() -> None:
    for _ in range(2):  # a second time after that
        result = large(1.0)
        before = resident()
        del result
        assert until(lambda before=before: resident() < before - 24 * MIB, 90)
        assert trim_pool() == 0
