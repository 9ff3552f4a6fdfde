"""The kernels of one process in several threads at once, of different sizes, and in processes that are forked from it.

All give what they give alone, to the bit.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from threads import at_once
from torch import Tensor

from qsam2_ao.native import load_kernels, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


@pytest.fixture(autouse=True)
def _threads_are_as_before() -> Iterator[None]:
    load_kernels()
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results(threads: int, seed: int) -> list[Tensor]:
    """Of operators with enough work for several threads; some outputs are of the pool."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    rows = 600 + 100 * seed
    x = torch.randint(0, 256, (rows, 256), generator=generator, dtype=torch.uint8)
    codes = torch.randint(0, 16, (1000, 256), generator=generator, dtype=torch.uint8)
    weight, sums = torch.ops.qsam2.pack_weight(codes, 4)
    ones, table = torch.ones(1000), torch.arange(16, dtype=torch.int8)
    out = torch.ops.qsam2.linear(x, weight, 4, table, ones, ones, None, "none", torch.float32, 1.0, 0.0, 255)
    q = torch.randn(1, 2, rows, 32, generator=generator).bfloat16()
    attended = [torch.ops.qsam2.attention(q, q, q, 0.2, coded) for coded in (False, True)]
    norm = torch.ops.qsam2.layer_norm(out, ones, ones, 1e-6, torch.bfloat16, 1.0, 0.0, 255)
    return [weight, sums, out, *attended, norm]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_threads_of_different_sizes_do_not_meet() -> None:
    """The number of torch's threads is that of the thread that calls."""
    alone = [results(1, seed) for seed in range(4)]

    def often(seed: int) -> list[list[Tensor]]:
        return [results(threads, seed) for threads in (1 + seed, 3, 2, 1)]

    for found, expected in zip(at_once(*(partial(often, seed) for seed in range(4))), alone, strict=True):
        assert all(same(one, expected) for one in found)


def test_forked_processes_compute_the_same_on_one_thread() -> None:
    """After OpenMP had threads here, which do not come along; meanwhile this process goes on with its own."""
    expected = results(2, 0)
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # rather than wait for a thread that is not there
            right = False
            try:
                right = same(results(1, 0), expected)
            finally:
                os._exit(not right)
        children.append(child)
    assert same(results(2, 0), expected)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
