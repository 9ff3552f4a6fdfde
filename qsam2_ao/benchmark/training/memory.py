"""Peak memory of training and of calibration on the CPU, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import platform
import re
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ...calibration import calibrate_qsam2
from ...calibration.exercise import inference
from ...calibration.images import load_images
from ..accuracy.cell import calibration_images
from .trainee import Trainee, Workload, build_float

Result = TypeVar("Result")


def alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a new process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes() -> int:
    """The most memory that this process has ever had resident."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
    # Not ru_maxrss, which on Linux starts with the peak of the process that started this one.
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def training_memory(workload: Workload, method: str) -> int:
    """Bytes that a model, its optimizer and two steps take at most. To be called in a new process.

    Args:
        workload: Model and batch.
        method: One of ``COMPARED``.
    """
    before = peak_bytes()
    trainee = Trainee(workload, method)
    for k in range(2):
        trainee.step(k)
    return peak_bytes() - before


def calibration_cost(workload: Workload, count: int) -> dict[str, float]:
    """What VRC takes beside the plain forward passes over its images. To be called in a new process.

    Args:
        workload: Only its model and size matter.
        count: Images.

    Returns:
        "forward seconds" of the image encoder over all images, "VRC seconds" (which hold forward passes too) and
        "VRC memory", the bytes by which its peak is above that of the forward passes.
    """
    model = build_float(workload)
    loaded = load_images(calibration_images(count, workload.size), max_images=count, seed=0)

    def forward() -> float:
        started = time.perf_counter()
        with inference(model):
            for batch in loaded.batches(model, 1, None):
                model.image_encoder(batch)
        return time.perf_counter() - started

    forward()
    seconds = forward()
    before = peak_bytes()
    started = time.perf_counter()
    calibrate_qsam2(model, loaded, max_images=count, progress=False)
    return {
        "forward seconds": seconds,
        "VRC seconds": time.perf_counter() - started,
        "VRC memory": float(peak_bytes() - before),
    }
