"""Memory over a long video."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch

from ...checkpoint import load_qsam2
from ...compat.quiet import propagate_quietly
from ...predictors import as_video_predictor, predictor_state
from .workload import InferenceWorkload

FRAMES, STEP = 500, 50


def video_memory(workload: InferenceWorkload) -> list[dict[str, Any]]:
    """Track one object with SAM2's own predictor and settings. To be called in a new process, on Linux with glibc.

    What the program has allocated is counted, not what is resident, which hides a leak in memory that was freed before.

    Returns:
        Records {model, size, frames, kept_mb, rest_mb}: megabytes on top of those after the first ``STEP`` frames; in
        the masks, memories and pointers of every frame, which SAM2's predictor keeps, and in all else.
    """
    torch.set_num_threads(workload.threads)
    predictor = as_video_predictor(load_qsam2(workload.packed("w4a8"), target="auto"))
    image = workload.image()
    state = predictor_state(predictor, [np.roll(image, t, axis=1) for t in range(FRAMES)])
    records: list[dict[str, Any]] = []
    start: tuple[int, int] | None = None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        middle = [[image.shape[1] / 2, image.shape[0] / 2]]
        predictor.add_new_points_or_box(state, 0, obj_id=1, points=middle, labels=[1])
        for frame, *_ in propagate_quietly(predictor, state):
            if (frame + 1) % STEP:
                continue
            now = _allocated(), _tensor_bytes(state["output_dict_per_obj"], set())
            start = start or now
            kept = now[1] - start[1]
            megabytes = {"kept_mb": round(kept / 1e6, 1), "rest_mb": round((now[0] - start[0] - kept) / 1e6, 1)}
            records.append({"model": workload.model, "size": workload.size, "frames": frame + 1, **megabytes})
    return records


class _MallInfo(ctypes.Structure):
    # As in malloc.h; what is in use are uordblks, from the heap, and hblkhd, mapped.
    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


def _allocated() -> int:
    """Bytes that glibc's malloc has handed out and not got back."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallInfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def _tensor_bytes(value: object, seen: set[int]) -> int:
    """Of all storages in nested containers, each once."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    if isinstance(value, dict):
        return sum(_tensor_bytes(item, seen) for item in value.values())
    return sum(_tensor_bytes(item, seen) for item in value) if isinstance(value, (list, tuple)) else 0
