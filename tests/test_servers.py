"""One model used by threads, an asyncio server and a pool of processes gives the masks of one caller."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import load, logits, serve

from qsam2_ao import load_embedded, load_qsam2
from qsam2_ao.native import why_no_kernels

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason="the int8 kernels do not run here")
TARGETS = ["float", "packed", pytest.param("int8", marks=needs_kernels)]
SIZES = ((96, 96), (64, 160), (200, 120))


def opened(packed_file: Path, target: str) -> Any:
    return load_embedded() if target == "float" else load_qsam2(packed_file, target=target)


def request(model: Any, number: int) -> np.ndarray:
    return logits(model, number, SIZES[number % len(SIZES)])


@pytest.mark.parametrize("target", TARGETS)
def test_threads_and_asyncio_share_a_model(packed_file: Path, target: str) -> None:
    model = opened(packed_file, target)
    numbers = list(range(12))
    # The calling thread's setting is its own, and threads have one for all cores: the same bits need the same number.
    with ThreadPoolExecutor(8, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        expected = [pool.submit(request, model, number).result() for number in numbers]
        found = list(pool.map(partial(request, model), numbers))

        async def server() -> list[np.ndarray]:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(pool)  # what asyncio.to_thread runs in
            return await asyncio.gather(*(asyncio.to_thread(request, model, number) for number in numbers))

        served = asyncio.run(server())
    for number in numbers:
        np.testing.assert_array_equal(found[number], expected[number])
        np.testing.assert_array_equal(served[number], expected[number])


@pytest.mark.slow
def test_a_pool_of_processes(packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    targets = ["packed", *(["int8"] if why_no_kernels() is None else [])]
    context = multiprocessing.get_context("spawn")
    with (
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as one,
        ProcessPoolExecutor(2, mp_context=context, initializer=load, initargs=(str(packed_file), targets)) as pool,
    ):
        for target in targets:
            expected = one.map(partial(logits, load_qsam2(packed_file, target=target)), range(4))
            for mask, same in zip(pool.map(partial(serve, target), range(4)), expected, strict=True):
                np.testing.assert_array_equal(mask, same, err_msg=target)


def resident() -> float:
    """MiB of memory that this process has, without what the allocator keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("target", TARGETS)
def test_memory_is_flat_after_pictures_of_many_sizes(packed_file: Path, target: str) -> None:
    model, rng = opened(packed_file, target), np.random.default_rng(0)
    seen = []
    for _ in range(3):
        for number in range(40):
            height, width = (int(side) for side in rng.integers(400, 1200, 2))
            logits(model, number, (height, width))
        seen.append(resident())
    # Kept, the last 80 pictures and their logits would take 350 MiB.
    assert seen[-1] - seen[0] < 150, seen
