"""Peak memory of training and of calibration on the CPU, each in a process of its own."""

from __future__ import annotations

import time

from ...calibration import calibrate_qsam2
from ...calibration.exercise import inference
from ...calibration.images import load_images
from ..accuracy.data import calibration_images
from ..processes import peak_bytes
from .trainee import Trainee, TrainingWorkload, build_float


def training_memory(workload: TrainingWorkload, method: str) -> int:
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


def calibration_cost(workload: TrainingWorkload, count: int) -> dict[str, float]:
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
