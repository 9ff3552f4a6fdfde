"""Resident memory over a long video."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...checkpoint import load_qsam2
from ...compat.quiet import quiet_sam2
from ...evaluation.state import as_video_predictor, predictor_state
from .case import Case

FRAMES, STEP = 500, 50


def video_memory(case: Case) -> list[dict[str, Any]]:
    """Track one object with SAM2's own predictor and settings. To be called in a new process.

    Returns:
        Records {model, size, frames, mb}: megabytes on top of those after the first ``STEP`` frames.
    """
    torch.set_num_threads(case.threads)
    predictor = as_video_predictor(load_qsam2(case.packed("w4a8"), target="auto"))
    image = case.image()
    state = predictor_state(predictor, [np.roll(image, t, axis=1) for t in range(FRAMES)])
    records: list[dict[str, Any]] = []
    start: int | None = None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), quiet_sam2():
        middle = [[image.shape[1] / 2, image.shape[0] / 2]]
        predictor.add_new_points_or_box(state, 0, obj_id=1, points=middle, labels=[1])
        for frame, *_ in predictor.propagate_in_video(state):
            if (frame + 1) % STEP:
                continue
            start = start or _resident()
            megabytes = round((_resident() - start) / 1e6, 1)
            records.append({"model": case.model, "size": case.size, "frames": frame + 1, "mb": megabytes})
    return records


def _resident() -> int:
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
