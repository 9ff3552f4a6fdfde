"""Run a function in two data-parallel processes, and hand back what each returned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 2


def run_ranks(function: Callable[[int], Any], folder: Path, seconds: float = 300) -> list[Any]:
    """``function(rank)`` of every rank. A rank that fails or takes longer than ``seconds`` fails the test."""
    context = mp.spawn(_rank, args=(function, str(folder)), nprocs=RANKS, join=False)
    end = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function} took more than {seconds:.0f} s")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _rank(rank: int, function: Callable[[int], Any], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.save(function(rank), f"{folder}/rank{rank}.pt")
    dist.barrier()
    # Not by way of gloo's own teardown, in which a process may wait for ever for one that is gone already.
    os._exit(0)
