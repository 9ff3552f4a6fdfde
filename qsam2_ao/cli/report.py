"""``qsam2 report``: a run, an evaluation, a comparison or a packed file as one HTML page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .common import Json, MaxPixels, print_json


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Packed files; folders of demo, quantize, train, evaluate, compare or sensitivity; results that "
            "--json printed; training logs (.jsonl).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The page to write; by default report.html in the first folder, or beside the first file.",
            show_default=False,
        ),
    ] = None,
    float_model: Annotated[
        str | None,
        typer.Option(
            "--float",
            metavar="MODEL",
            help="The float model that the packed files were made from, to compare layers with: 'embedded', a "
            "checkpoint, a folder of transformers. A demo's is known.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Pictures to compare layers on; procedural by default.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Videos with masks (as DAVIS, or 'embedded') to score the models on, with the worst ones' masks.",
            show_default=False,
        ),
    ] = None,
    videos: Annotated[int, typer.Option(min=1, help="Only the first so many videos.")] = 8,
    protocol: Annotated[
        str | None,
        typer.Option(metavar="official|deployed", help="As for qsam2 evaluate, with its defaults.", show_default=False),
    ] = None,
    time: Annotated[bool, typer.Option("--time", help="Time every layer of packed files.")] = False,
    max_pixels: MaxPixels = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a run: sizes, bits, where accuracy is lost, curves, masks; it needs no network.

    Example: [bold]qsam2 report tiny-w4a8.safetensors --float sam2.1_hiera_tiny.pt --images photos --time[/bold]
    """
    from ..errors import QConfigError
    from ..html_report import ReportOptions, write_report
    from ..workflow import EMBEDDED
    from ..workflow.labelled import labelled_videos

    if data is not None and data != EMBEDDED and not Path(data).is_dir():
        raise QConfigError(f"--data {data}: no such folder")
    page = output or (runs[0] / "report.html" if runs[0].is_dir() else runs[0].with_name(f"{runs[0].stem}-report.html"))
    if protocol is not None and data is None:
        raise QConfigError("--protocol is how the videos of --data are scored: name them, or leave it out")
    options = ReportOptions(reference=float_model, images=None if images is None else str(images), time=time)
    if data is not None:
        opened = labelled_videos(data, count=videos)
        if opened.pictures:
            raise QConfigError(f"--data {data} holds pictures, of which there is no J&F: name videos with masks")
        options = replace(
            options,
            videos=opened.sequences,
            protocol=protocol or opened.protocol,  # type: ignore[arg-type]  # checked where it is used
            metric=opened.metric,
        )
    written = write_report(runs, page, options)
    if as_json:
        print_json({"report": str(written)})
        return
    typer.echo(f"wrote {written}")
