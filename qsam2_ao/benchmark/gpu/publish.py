"""The benchmark of a GPU as a whole: what matters most first, each step kept, within a given time."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from ...devices import usable_device
from ...errors import UnsupportedLayerError
from ...files import atomic_write
from ...native import why_no_kernels
from ...reporting.environment import environment
from ...reporting.notes import note
from ...workspace import Workspace
from ..inference.workload import InferenceWorkload
from ..training.steps import measure_steps
from ..training.trainee import OFFICIAL
from .correctness import check_model, check_operators
from .encoders import BASELINE, METHODS, profile_encoder, time_encoder, time_shapes
from .pieces import time_attention
from .report import markdown

MODELS = ("sam2.1-t", "sam2.1-b+")
BATCHES = (1, 8)
SIZE = 1024
PRESETS = ("w8a8", "w4a8")
Results = dict[str, Any]


class _Work(Protocol):
    def __call__(self) -> Any: ...


@dataclass(frozen=True)
class Step:
    """One measurement.

    Attributes:
        kind: The part of the report that it belongs to.
        name: As its file is called.
        work: Makes its records.
    """

    kind: str
    name: str
    work: _Work


def publish_gpu(
    folder: Path,
    *,
    device: str = "cuda",
    minutes: float = 30,
    models: Sequence[str] = MODELS,
    size: int = SIZE,
    prepare: bool = False,
) -> Results:
    """Check and time the kernels, the image encoder and a training step on a GPU.

    Finished steps are kept in ``gpu.work``: a later run goes on from there. A step that fails is reported, and tried
    again by the next run; after ``minutes`` no step is begun any more.

    Args:
        folder: Where ``gpu.json`` and ``gpu.md`` go.
        device: A GPU.
        minutes: How long the GPU can be had.
        models: Short official names, the most important first.
        size: Side of the input in pixels.
        prepare: Only quantize the models, which needs no GPU; a later run finds their files.

    Returns:
        The results by kind, with "failed" and "left".

    Raises:
        QSAM2Error: There is no such device.
        UnsupportedLayerError: The kernels cannot run on it.

    Example:
        >>> publish_gpu(Path("outputs/gpu"))  # doctest: +SKIP
    """
    files = folder / "gpu.work" / "files"
    workloads = [InferenceWorkload(model, size, torch.get_num_threads(), files) for model in models]
    if prepare:
        files.mkdir(parents=True, exist_ok=True)
        for workload in workloads:
            for preset in PRESETS:
                note(f"quantizing {workload.model} to {preset}")
                workload.packed(preset)
        return {}
    there = usable_device(device)
    if there.type != "cuda":
        raise UnsupportedLayerError(
            f"this benchmark is for NVIDIA GPUs, not for {there.type}; `qsam2 benchmark inference` measures CPUs"
        )
    if (reason := why_no_kernels(there)) is not None:
        raise UnsupportedLayerError(f"cannot benchmark the GPU: {reason}")
    files.mkdir(parents=True, exist_ok=True)
    with torch.cuda.device(there):
        machine = environment("triton")  # which names the current GPU
    kept = Workspace(folder / "gpu.work", {"environment": machine, "size": size, "models": list(models)})
    with kept.locked():
        results = take_steps(kept, plan(workloads, there), minutes)
    write_results(folder, results, machine)
    return results


def plan(workloads: Sequence[InferenceWorkload], device: torch.device) -> list[Step]:
    """All steps, the most important first."""
    first, *_ = workloads
    steps = [Step("correctness", "operators", partial(check_operators, device))]
    steps += [
        Step("correctness", f"{first.model}-{preset}", partial(check_model, first, preset, device))
        for preset in PRESETS
    ]

    def encoders(workload: InferenceWorkload, batch: int) -> list[Step]:
        return [
            Step("encoders", f"{workload.model}-{batch}-{number}", partial(time_encoder, workload, name, batch, device))
            for number, name in enumerate(METHODS)
        ]

    steps += encoders(first, 1)
    steps.append(Step("products", f"{first.model}-1-products", partial(time_shapes, first, 1, device)))
    steps += [
        Step("profile", f"{first.model}-profile-{number}", partial(profile_encoder, first, name, device))
        for number, name in enumerate(METHODS)
        if name in (BASELINE, "qsam2 W8A8")
    ]
    steps.append(Step("attention", "attention", partial(time_attention, device)))
    steps.append(
        Step("training", "training", partial(measure_steps, OFFICIAL, ("float", "LSC"), 7, device=str(device)))
    )
    for workload, batch in ((w, b) for w in workloads for b in BATCHES):
        if (workload, batch) != (first, 1):
            steps += encoders(workload, batch)
    steps += [Step("products", f"{w.model}-1-products", partial(time_shapes, w, 1, device)) for w in workloads[1:]]
    return steps


def take_steps(kept: Workspace, steps: Sequence[Step], minutes: float) -> Results:
    """Take the steps that are not kept yet, in turn, as long as there is time.

    Returns:
        kind -> records; "failed" {step: why}, and "left", the steps that there was no time for.
    """
    results: Results = {kind: [] for kind in dict.fromkeys(step.kind for step in steps)}
    failed: dict[str, str] = {}
    left: list[str] = []
    end = time.monotonic() + 60 * minutes
    for step in steps:
        if time.monotonic() >= end and not (kept.folder / f"{step.name}.json").exists():
            left.append(step.name)
            continue
        note(f"{step.name} ({max(0, end - time.monotonic()) / 60:.0f} minutes left)")
        try:
            found = kept.result(step.name, step.work)
        except Exception as error:  # a GPU's time is short: what else can be measured is
            failed[step.name] = f"{type(error).__name__}: {str(error).strip()[:500]}"
            note(f"{step.name} failed: {failed[step.name]}")
            continue
        finally:
            if torch.cuda.is_available():
                torch.compiler.reset()
                torch.cuda.empty_cache()
        # Of the profiles, which method each is of.
        results[step.kind] += [{"step": step.name, **row} for row in (found if isinstance(found, list) else [found])]
    return {**results, "failed": failed, "left": left}


def write_results(folder: Path, results: Results, machine: dict[str, str]) -> None:
    """``gpu.json`` and ``gpu.md``."""
    whole = {"environment": machine, **results}
    for name, text in (("gpu.json", json.dumps(whole, indent=1)), ("gpu.md", markdown(results, machine))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text)
