"""The inference benchmark as a whole: what is missing is measured, and results, report and plots are written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...errors import QConfigError
from ...files import atomic_write
from ...models.official import OFFICIAL
from ...reporting.environment import environment, usable_cores
from ...reporting.figures import has_data, save_figure
from ...reporting.notes import note
from ...spelling import did_you_mean
from ...workspace import Workspace
from ..processes import alone
from .avx2 import ENVIRONMENTS, avx2_times, kernels_for
from .avx2 import PARTS as AVX2_PARTS
from .busy import EMBEDDED, busy_machine
from .compile_time import compile_times
from .footprint import footprints
from .methods import METHODS, REFERENCE, InferenceMethod
from .parts import PARTS
from .plots import growth, latency_against_size
from .report import in_order, markdown
from .roofline import ceilings, work
from .timing import measure
from .video_memory import video_memory
from .workload import InferenceWorkload

MODELS = ("sam2.1-t", "sam2.1-s", "sam2.1-b+", "sam2.1-l")
BUSY, FILES = "busy machine", "files"
LARGE = "sam2.1-l"
LARGE_METHODS = (REFERENCE, "torch bf16, our attention", "OpenVINO INT8", "qsam2 W8A8", "qsam2 W4A8", "qsam2 W2A8")
"""What is timed of the largest model unless methods are named: all of them beside each other need more than 24 GiB."""
_RIVALS = ("openvino", "nncf", "onnxruntime")
_QUICK = ("torch bf16 compiled", "torch bf16, our attention", "qsam2 W4A8", "qsam2 W2A8")
Records = list[dict[str, Any]]


def publish(
    folder: Path,
    *,
    quick: bool = False,
    models: Sequence[str] | None = None,
    sizes: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
) -> Records:
    """Time the parts of SAM2 and both predictors by every method; measure files, loading, compiling and memory.

    Finished parts are kept in ``inference.work``, also for other choices of models, sizes and threads: a later run
    goes on from there, and the report shows all that is there.

    Args:
        folder: Where ``inference.json``, ``inference.md`` and the plots go.
        quick: SAM2.1-T at 512 px and four methods, in minutes.
        models: Only these; None for all.
        sizes: Sides of the input in pixels; None for 1024 and 512.
        threads: Numbers of threads; None for one and all cores.
        methods: Only these and the reference; None for all.
        parts: Only these, as the tables call them, and nothing of compiling and memory; None for all.

    Returns:
        The records of all timings in the folder.

    Raises:
        QConfigError: A name is unknown, or the folder has a report of other methods that this one would replace.
        QSAM2Error: A process was killed, or a file cannot be written.
        MissingPackageError: The package of another runtime is not installed.

    Example:
        >>> publish(Path("outputs/quick"), quick=True)  # doctest: +SKIP
    """
    names = methods if methods is not None or not quick else list(_QUICK)
    chosen = [m for m in METHODS if names is None or m.name in (*names, _QUICK[0])]
    for given, known in (
        (models, OFFICIAL),
        (names, [m.name for m in METHODS]),
        (parts, (*PARTS, FILES, BUSY, *ENVIRONMENTS)),
    ):
        if unknown := sorted(set(given or ()) - set(known)):
            raise QConfigError(
                f"unknown name {unknown[0]!r}; choose from {', '.join(known)}{did_you_mean(unknown[0], list(known))}"
            )
    cores = usable_cores()
    machine = environment()
    asked = {"methods": [m.name for m in chosen], "all_named": methods is not None, "format": 2}
    kept = Workspace(folder / "inference.work", {**asked, "environment": machine})
    choices = {"model": models, "size": sizes, "threads": threads, "method": methods, "part": parts}
    given = [f" --{name} {shlex.quote(str(value))}" for name, values in choices.items() for value in values or ()]
    if (given or quick) and (folder / "inference.json").exists() and not any(kept.folder.glob("*-*.json")):
        raise QConfigError(
            f"{folder / 'inference.json'} is of other methods or another machine, and this choice of measurements "
            "would replace it; give another folder (--output)"
        )
    _measure(
        kept,
        chosen,
        models or (["sam2.1-t"] if quick else MODELS),
        sizes or ([512] if quick else [1024, 512]),
        threads or sorted({1, cores}),
        parts,
        cores,
        quick=quick,
        all_named=methods is not None,
    )
    return _report(kept, folder, "".join(["qsam2 benchmark inference", *([" --quick"] if quick else []), *given]))


def _measure(
    kept: Workspace,
    methods: Sequence[InferenceMethod],
    models: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    parts: Sequence[str] | None,
    cores: int,
    *,
    quick: bool,
    all_named: bool,
) -> None:
    """Keep everything that the report shows."""
    files = kept.folder / "files"
    files.mkdir(exist_ok=True)
    for name in models:
        timed = [m for m in methods if name != LARGE or all_named or m.name in LARGE_METHODS]
        for pixels in sizes:
            first = InferenceWorkload(name, pixels, counts[0], files)
            if parts is None:
                kept.result(f"{name}-{pixels}px-work", partial(work, first))
            for count in counts:
                workload = InferenceWorkload(name, pixels, count, files)
                for number, part in enumerate(PARTS):
                    if parts is None or part in parts:
                        kept.result(f"{workload.name}-{number}-times", partial(alone, measure, workload, part, timed))
            for instructions in ENVIRONMENTS:
                if (parts is None and not quick) or instructions in (parts or ()):
                    for number, part in enumerate(AVX2_PARTS):
                        key = f"{name}-{pixels}px-{number}-{kernels_for(instructions)}"
                        kept.result(key, partial(avx2_times, first, [part], instructions))
        last = InferenceWorkload(name, sizes[0], counts[-1], files)
        of_any_threads = f"{name}-{sizes[0]}px"
        if parts is None or FILES in parts:
            kept.result(f"{of_any_threads}-files", partial(footprints, last))
        if parts is None and not quick:
            kept.result(f"{of_any_threads}-compile", partial(compile_times, last))
    if parts is None or BUSY in parts:
        busy = [InferenceWorkload(EMBEDDED, 96, cores, files)]
        if not quick:
            busy.append(InferenceWorkload(models[0], 512, cores, files))
        for workload in busy:
            kept.result(f"{workload.name}-busy", partial(busy_machine, workload, cores, rounds=1 if quick else 3))
    if parts is not None:
        return
    note("ceilings and memory")
    for count in counts:
        kept.result(f"{count}-threads-ceilings", partial(alone, ceilings, count))
    memory = InferenceWorkload(models[0], 256, counts[-1], files)
    kept.result(f"{memory.model}-256px-video-memory", partial(alone, video_memory, memory))


def _report(kept: Workspace, folder: Path, command: str) -> Records:
    """Write results, report and plots of all that is kept."""

    def all_of(kind: str) -> Records:
        found = [json.loads(path.read_text()) for path in sorted(kept.folder.glob(f"*-{kind}.json"))]
        return in_order([record for records in found for record in records])

    records, packed, compiled, parts, memory, busy = (
        all_of(kind) for kind in ("times", "files", "compile", "work", "memory", "busy")
    )
    without_avx512 = {instructions: all_of(kernels_for(instructions)) for instructions in ENVIRONMENTS}
    tops: dict[str, dict[str, float]] = {}
    for path in sorted(kept.folder.glob("*-threads-ceilings.json")):
        tops[path.name.partition("-")[0]] = json.loads(path.read_text())
    details = {
        "files": packed,
        "compile": compiled,
        "work": parts,
        "ceilings": tops,
        "video memory": memory,
        "busy": busy,
        **{kernels_for(instructions): found for instructions, found in without_avx512.items()},
    }
    plots = {}
    if records:
        if has_data(against_size := latency_against_size(records, packed)):
            plots["Latency against size"] = save_figure(against_size, folder / "inference_size.png")
        if (drawn := growth(records)) is not None:
            plots["Growth"] = save_figure(drawn, folder / "inference_growth.png")
    text = markdown(
        records,
        packed,
        compiled,
        parts,
        tops,
        memory,
        busy,
        without_avx512,
        environment(*_RIVALS),
        command,
        {caption: path.name for caption, path in plots.items()},
    )
    for name, content in (
        ("inference.json", json.dumps(records, indent=1)),
        ("inference_details.json", json.dumps(details, indent=1)),
        ("inference.md", text),
    ):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content)
    return records
