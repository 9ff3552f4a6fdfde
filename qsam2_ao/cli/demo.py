"""``qsam2 demo``: the whole journey on the embedded model: float, VRC, QAT, 4 and 2 bits, reload, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..spelling import counted
from .common import PRESET_NAMES, Device, Json, console, print_json

if TYPE_CHECKING:
    from ..workflow.demo import DemoResult


REPORTED = 8
"""Videos that the page has scores of; the table has those of all."""


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/demo"
    ),
    preset: Annotated[list[str], typer.Option(help=f"Among {PRESET_NAMES}. Repeatable.")] = ["w4a8", "w2a8"],  # noqa: B006
    steps: Annotated[int, typer.Option(min=0, help="Training steps for each preset.")] = 30,
    images: Annotated[int, typer.Option(min=1, help="Calibrate on so many images.")] = 50,
    videos: Annotated[int, typer.Option(min=1, help="Evaluate on so many videos of the test split.")] = 16,
    lr: Annotated[
        float | None,
        typer.Option(min=0, help="Peak learning rate of weights; by default as qsam2 quantize.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    web: Annotated[
        bool, typer.Option("--web", help="Then serve a page to click on, with the float model and the packed files.")
    ] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Take the small SAM2 that ships with the package from float to packed bits, and compare.

    Writes the packed files, pictures of the masks side by side, results.json and report.html, a page with all of it and
    more. Run again, it goes on where it stopped.

    Example: [bold]qsam2 demo --steps 200 -o outputs/demo[/bold]
    """
    from ..errors import MissingPackageError
    from ..html_report import ReportOptions, write_report
    from ..optional import needed
    from ..reporting.notes import note
    from ..workflow import EMBEDDED
    from ..workflow.demo import FRAMES, run_demo
    from ..workflow.labelled import labelled_videos

    if web:
        needed("starlette")
    result = run_demo(output, preset, steps=steps, images=images, videos=videos, lr=lr, seed=seed, device=device)
    tracked = labelled_videos(EMBEDDED, count=min(videos, REPORTED), frames=FRAMES)
    page = None
    try:
        options = ReportOptions(
            videos=tracked.sequences,
            protocol=tracked.protocol,
            metric=tracked.metric,
            target="packed",  # as the demo's own scores
            time=True,
        )
        page = write_report([output], output / "report.html", options)
    except MissingPackageError as error:
        note(f"no report is written: {error}")
    if as_json:
        print_json(result.to_dict() | {"report": page and str(page)})
    else:
        _show(result, output, page, f"{counted(videos, 'test video')}, {counted(steps, 'training step')}, in percent")
    if web:
        from ..web.serve import load_models, serve

        serve(load_models([EMBEDDED, *(str(output / f"{name}.safetensors") for name in preset)], device))


def _show(result: DemoResult, output: Path, page: Path | None, title: str) -> None:
    from ..reporting.tables import comparison_table

    console().print(comparison_table(result.rows, title))
    typer.echo(f"wrote the packed files, {counted(len(result.pictures), 'picture')} and results.json to {output}")
    if page:
        typer.echo(f"look at {page.absolute()}")
