"""Time on a GPU as the GPU counts it, without what Python takes to launch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Run = Callable[[], Any]
_ROUNDS = 20
_SECONDS = 3.0


class Clock:
    """Times calls on a device, on a CPU by the wall.

    Args:
        device: Where the calls run.

    Example:
        >>> x = torch.ones(8)
        >>> Clock(torch.device("cpu")).milliseconds(lambda: x + x, rounds=2) >= 0
        True
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def milliseconds(self, run: Run, rounds: int = _ROUNDS) -> float:
        """The median of some calls after two that warm up; as few as three where they take seconds."""
        for _ in range(2):
            run()
        self.wait()
        taken: list[float] = []
        started = time.perf_counter()
        while len(taken) < rounds and (len(taken) < 3 or time.perf_counter() - started < _SECONDS):
            taken.append(self._once(run))
        return round(statistics.median(taken), 4)

    def graphed(self, run: Run) -> Run:
        """``run`` captured in a CUDA graph, which is launched as a whole; on a CPU as it is."""
        if self.device.type != "cuda":
            return run
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles kernels, allocates
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _once(self, run: Run) -> float:
        if self.device.type != "cuda":
            before = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - before)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))
