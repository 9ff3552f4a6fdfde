"""Time to the first mask under torch.compile, with an empty and with a filled cache."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base

from ...checkpoint import load_qsam2
from ...deploy.compiled import compile_qsam2
from ...progress import tqdm
from ..processes import alone
from .methods import REFERENCE, compile_float
from .parts import predict_image
from .workload import InferenceWorkload

PACKED = "qsam2 W4A8 packed, compiled"
_MODELS: dict[str, Callable[[InferenceWorkload], SAM2Base]] = {
    REFERENCE: lambda workload: compile_float(workload.build()),
    PACKED: lambda workload: compile_qsam2(load_qsam2(workload.packed("w4a8"), target="packed")),
}


def compile_times(workload: InferenceWorkload, *, progress: bool = True) -> list[dict[str, Any]]:
    """Compile in two processes, one after the other, that share a cache of their own.

    Args:
        workload: Model, size and threads.
        progress: Whether to show a bar.

    Returns:
        Records {model, size, method, cold_seconds, warm_seconds}: from the model in memory to its first mask, by the
        process that found an empty cache and by the next one.
    """
    workload.packed("w4a8")
    records = []
    for method in tqdm(_MODELS, desc=f"{workload.name}: compile", unit="method", disable=not progress):
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (alone(_first_mask, workload, method, Path(cache)) for _ in range(2))
        place = {"model": workload.model, "size": workload.size}
        records.append({**place, "method": method, "cold_seconds": cold, "warm_seconds": warm})
    return records


def _first_mask(workload: InferenceWorkload, method: str, cache: Path) -> float:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    torch.set_num_threads(workload.threads)
    model, image = _MODELS[method](workload), workload.image()
    started = time.perf_counter()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        predict_image(model, image)()
    return round(time.perf_counter() - started, 2)
