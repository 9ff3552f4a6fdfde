"""Size of the file, time from it to the first mask, and memory; each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from tqdm import tqdm

from ...checkpoint import load_qsam2
from ...models.official import build_official
from ..processes import alone, peak_bytes
from .case import Case
from .parts import predict_image

CHECKPOINT = "bf16 checkpoint"
PRESETS = ("w8a8", "w4a8", "w3a8", "w2a8", "w4a16")


def footprints(case: Case, presets: Sequence[str] = PRESETS, *, progress: bool = True) -> list[dict[str, Any]]:
    """Measure the float checkpoint and the packed files of a model.

    Args:
        case: Model, size and threads.
        presets: Of the packed files.
        progress: Whether to show a bar.

    Returns:
        Records {model, size, file, file_bytes, build_seconds, load_seconds, mask_seconds, load_bytes, mask_bytes}:
        seconds to read the file and build the float module, to load the model, and to load it and segment one image;
        resident bytes on top of the imports at most, while loading and until the mask.
    """
    records = []
    for name in tqdm((CHECKPOINT, *presets), desc=f"{case.name}: files", unit="file", disable=not progress):
        path = case.checkpoint() if name == CHECKPOINT else case.packed(name)
        build = alone(_read_and_build, case, name)
        records.append({"model": case.model, "size": case.size, "file": name, "file_bytes": path.stat().st_size})
        records[-1] |= {"build_seconds": build, **alone(_load_and_segment, case, name)}
    return records


def _path(case: Case, name: str) -> Any:
    return case.checkpoint() if name == CHECKPOINT else case.packed(name)


def _read_and_build(case: Case, name: str) -> float:
    path = _path(case, name)
    started = time.perf_counter()
    path.read_bytes()
    build_official(case.model, image_size=case.size)
    return round(time.perf_counter() - started, 3)


def _load_and_segment(case: Case, name: str) -> dict[str, float]:
    torch.set_num_threads(case.threads)
    path, image = _path(case, name), case.image()
    before = peak_bytes()
    started = time.perf_counter()
    if name == CHECKPOINT:
        model: Any = build_official(case.model, path, image_size=case.size)
    else:
        model = load_qsam2(path, target="auto")
    loaded, load_bytes = time.perf_counter() - started, peak_bytes() - before
    assert isinstance(model, SAM2Base)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        predict_image(model, image)()
    return {
        "load_seconds": round(loaded, 3),
        "mask_seconds": round(time.perf_counter() - started, 3),
        "load_bytes": load_bytes,
        "mask_bytes": peak_bytes() - before,
    }
