"""``qsam2 benchmark inference``: speed, size and memory of deployed models."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import QConfigError
from ..files import atomic_write
from .common import Json, note, print_json
from .workspace import Workspace

MODELS = ("sam2.1-t", "sam2.1-s", "sam2.1-b+", "sam2.1-l")
_RIVALS = ("openvino", "nncf", "onnxruntime")
_BUSY = "busy machine"
_QUICK = ("torch bf16 compiled", "torch bf16, our attention", "qsam2 W4A8", "qsam2 W2A8")


def inference(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Results, report and plots.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="SAM2.1-T at 512 px and four methods, in minutes.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; may be given several times.")
    ] = None,
    size: Annotated[list[int] | None, typer.Option(metavar="PIXELS", help="Only these sizes.")] = None,
    threads: Annotated[list[int] | None, typer.Option(metavar="COUNT", help="Only on so many threads.")] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these; the baseline is always there.")
    ] = None,
    part: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only these, as the tables call them.")] = None,
    as_json: Json = False,
) -> None:
    """Time the parts of SAM2 and both predictors by every method; measure files, loading, compiling and memory.

    Leave the machine alone meanwhile. Finished parts are kept in FOLDER/inference.work, also for other choices of
    models, sizes and threads: the same command goes on from there, and the report shows all that is there. By default
    FOLDER is benchmarks/results, or outputs/inference-quick with --quick.

    Example: [bold]qsam2 benchmark inference --quick[/bold]
    """
    from ..benchmark.environment import environment
    from ..benchmark.inference.busy import EMBEDDED, busy_machine
    from ..benchmark.inference.case import Case
    from ..benchmark.inference.compile_time import compile_times
    from ..benchmark.inference.footprint import footprints
    from ..benchmark.inference.methods import METHODS
    from ..benchmark.inference.parts import PARTS
    from ..benchmark.inference.plots import growth, latency_against_size
    from ..benchmark.inference.report import in_order, markdown
    from ..benchmark.inference.roofline import ceilings, work
    from ..benchmark.inference.timing import measure
    from ..benchmark.inference.video_memory import video_memory
    from ..benchmark.processes import alone
    from ..models.official import OFFICIAL
    from ..reporting.figures import save_figure

    folder = output or Path("outputs/inference-quick" if quick else "benchmarks/results")
    names = list(_QUICK) if quick else method
    chosen = [m for m in METHODS if names is None or m.name in (*names, _QUICK[0])]
    for given, known in ((model, OFFICIAL), (names, [m.name for m in METHODS]), (part, (*PARTS, _BUSY))):
        if unknown := sorted(set(given or ()) - set(known)):
            raise QConfigError(f"unknown name {unknown[0]!r}; choose from {', '.join(known)}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = threads or sorted({1, cores})
    models = model or (["sam2.1-t"] if quick else MODELS)
    sizes = size or ([512] if quick else [1024, 512])
    machine = environment()
    kept = Workspace(folder / "inference.work", {"methods": [m.name for m in chosen], "environment": machine})
    files = kept.folder / "files"
    files.mkdir(exist_ok=True)
    for name in models:
        for pixels in sizes:
            first = Case(name, pixels, counts[0], files)
            kept.result(f"{name}-{pixels}px-work", partial(work, first))
            for count in counts:
                case = Case(name, pixels, count, files)
                for number, one in enumerate(PARTS):
                    if part is None or one in part:
                        kept.result(f"{case.name}-{number}-times", partial(alone, measure, case, one, chosen))
        last = Case(name, sizes[0], counts[-1], files)
        kept.result(f"{name}-files", partial(footprints, last))
        if not quick:
            kept.result(f"{name}-compile", partial(compile_times, last))
    if part is None or _BUSY in part:
        for busy in (Case(EMBEDDED, 96, cores, files), *(() if quick else (Case(models[0], 512, cores, files),))):
            kept.result(f"{busy.name}-busy", partial(busy_machine, busy, cores, rounds=1 if quick else 3))
    note("ceilings and memory")
    for count in counts:
        kept.result(f"{count}-threads-ceilings", partial(alone, ceilings, count))
    kept.result("video-memory", partial(alone, video_memory, Case(models[0], 256, counts[-1], files)))

    def all_of(kind: str) -> list[Any]:
        found = [json.loads(path.read_text()) for path in sorted(kept.folder.glob(f"*-{kind}.json"))]
        return in_order([record for records in found for record in records])

    records, packed, compiled, parts, memory, busy = (
        all_of(kind) for kind in ("times", "files", "compile", "work", "memory", "busy")
    )
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
    }
    plots = {
        "Latency against size": save_figure(latency_against_size(records, packed), folder / "inference_size.png"),
        "Growth": save_figure(growth(records), folder / "inference_growth.png"),
    }
    command = "qsam2 benchmark inference" + (" --quick" if quick else "")
    text = markdown(
        records,
        packed,
        compiled,
        parts,
        tops,
        memory,
        busy,
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
    if as_json:
        print_json(records)
        return
    typer.echo(f"{len(records)} records: {folder / 'inference.md'}")
