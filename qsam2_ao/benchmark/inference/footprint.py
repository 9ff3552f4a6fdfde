"""Size of the file, time from it to the first mask, and memory; each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...checkpoint import load_qsam2
from ...models.official import build_official
from ...progress import tqdm
from ...workflow.models import save_embedded_w4a8
from ..processes import alone, peak_bytes
from .parts import predict_image
from .workload import InferenceWorkload

CHECKPOINT = "bf16 checkpoint"
PRESETS = ("w8a8", "w4a8", "w3a8", "w2a8", "w4a16")


def footprints(
    workload: InferenceWorkload, presets: Sequence[str] = PRESETS, *, progress: bool = True
) -> list[dict[str, Any]]:
    """Measure the float checkpoint and the packed files of a model.

    Args:
        workload: Model, size and threads.
        presets: Of the packed files.
        progress: Whether to show a bar.

    Returns:
        Records {model, size, file, file_bytes, build_seconds, load_seconds, load_bytes, lowered_seconds, lowered_bytes,
        mask_seconds, mask_bytes}: seconds to read the file and build the float module; to load the model as it is
        stored; to load it for this machine's kernels; and to segment one image then, from the start. Bytes are the peak
        until then, on top of the interpreter with its imports. A float checkpoint is loaded in one way only.
    """
    embedded_file(workload)
    records = []
    for name in tqdm((CHECKPOINT, *presets), desc=f"{workload.name}: files", unit="file", disable=not progress):
        path = workload.checkpoint() if name == CHECKPOINT else workload.packed(name)
        record = {"model": workload.model, "size": workload.size, "file": name, "file_bytes": path.stat().st_size}
        record["build_seconds"] = alone(_read_and_build, workload, name)
        stored = alone(_load, workload, name, "packed", False)
        lowered = alone(_load, workload, name, "auto", True)
        record |= {f"load_{key}": value for key, value in stored.items()}
        records.append(record | {key if "_" in key else f"lowered_{key}": value for key, value in lowered.items()})
    return records


def embedded_file(workload: InferenceWorkload) -> Path:
    """The embedded model in W4A8; loading it imports all that loading ever imports."""
    path = workload.files / "embedded-w4a8.safetensors"
    if not path.exists():
        save_embedded_w4a8(path)
    return path


def _path(workload: InferenceWorkload, name: str) -> Path:
    return workload.checkpoint() if name == CHECKPOINT else workload.packed(name)


def _read_and_build(workload: InferenceWorkload, name: str) -> float:
    path = _path(workload, name)
    started = time.perf_counter()
    path.read_bytes()
    build_official(workload.model, image_size=workload.size)
    return round(time.perf_counter() - started, 3)


def _load(workload: InferenceWorkload, name: str, target: str, segment: bool) -> dict[str, float]:
    torch.set_num_threads(workload.threads)
    path, image = _path(workload, name), workload.image()
    load_qsam2(embedded_file(workload), target=target)
    before = peak_bytes()
    started = time.perf_counter()

    def spent(prefix: str) -> dict[str, float]:
        seconds = round(time.perf_counter() - started, 3)
        return {f"{prefix}seconds": seconds, f"{prefix}bytes": peak_bytes() - before}

    if name == CHECKPOINT:
        model: Any = build_official(workload.model, path, image_size=workload.size)
    else:
        model = load_qsam2(path, target=target)
    found = spent("")
    if segment:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            predict_image(model, image)()
        found |= spent("mask_")
    return found
