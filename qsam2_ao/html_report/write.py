"""From files and folders to a page."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam2.modeling.sam2_base import SAM2Base

from ..calibration.images import CalibrationData
from ..data.types import VideoSequence
from ..evaluation.protocol import Protocol
from ..evaluation.tally import Metric
from ..files import atomic_write, check_output_file
from ..optional import needed
from ..reporting.environment import environment
from ..reporting.notes import note
from ..workflow import EMBEDDED
from ..workflow.data import procedural_images
from ..workflow.models import load_model
from .model_sections import model_sections
from .page import Section, Table, render
from .result_sections import (
    comparison_section,
    demo_section,
    evaluation_section,
    run_section,
    sensitivity_section,
    training_section,
)
from .sources import Sources, find_sources
from .videos import FLOAT, video_section

IMAGES = 4


@dataclass(frozen=True)
class ReportOptions:
    """What a report computes beside what it finds.

    Attributes:
        reference: Name of the float model that packed files are compared with; None for the embedded one where the
            files are a demo's, and for no comparison else.
        images: To compare layers on; None for procedural ones.
        videos: Videos with masks to score the models on; None for no scores.
        protocol: How they are scored, as by ``qsam2 evaluate``: "official" or "deployed".
        metric: Likewise: "davis" or "sav".
        target: How packed files run for the scores, as for ``load_qsam2``.
        time: Whether to time every layer of packed files.
    """

    reference: str | None = None
    images: CalibrationData | None = None
    videos: Sequence[VideoSequence] | None = None
    protocol: Protocol = "official"
    metric: Metric = "sav"
    target: str = "auto"
    time: bool = False


def write_report(
    paths: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], options: ReportOptions | None = None
) -> Path:
    """Write one HTML file about all that is found in files and folders.

    Args:
        paths: Packed files; results of ``compare``, ``evaluate``, ``sensitivity`` and ``demo``; logs of trainings; and
            folders with such files.
        output: The ``.html`` file.
        options: What to compute besides.

    Returns:
        The file.

    Raises:
        DataError: There is nothing to report on.
        QSAM2Error: A file is damaged, the float model is another one, or the page cannot be written.
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> write_report(["outputs/demo"], "outputs/demo/report.html")  # doctest: +SKIP
    """
    options = options or ReportOptions()
    needed("matplotlib")
    check_output_file(output, ".html")
    found = find_sources(paths)
    title = f"Q-SAM2: {', '.join(Path(path).name or str(path) for path in paths)}"
    sections = _sections(found, options)
    where = ", ".join(f"{name} {value}" for name, value in environment().items())
    made = f"Written on {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}. {where}."
    with atomic_write(output) as temporary:
        temporary.write_text(render(title, sections, made), "utf-8")
    return Path(output)


def _sections(found: Sources, options: ReportOptions) -> list[Section]:
    sections = [_contents(found)]
    sections += [demo_section(folder, results) for folder, results in found.demos]
    sections += [comparison_section(folder, comparison) for folder, comparison in found.comparisons]
    sections += [evaluation_section(path, content) for path, content in found.evaluations]
    sections += [run_section(folder, settings) for folder, settings in found.runs]
    sections += [training_section(path, rows) for path, rows in found.logs]
    order = [str(row["name"]) for _, results in found.demos for row in results["rows"]]
    packed = sorted(found.packed, key=lambda path: order.index(path.stem) if path.stem in order else len(order))
    name = options.reference or (EMBEDDED if found.demos else None)
    reference = None if name is None or not found.packed else load_model(name)
    if options.videos and found.packed:
        models: dict[str, SAM2Base] = {} if reference is None else {FLOAT: reference}
        models |= {_label(path, found): load_model(str(path), target=options.target) for path in packed}
        sections.append(
            video_section(
                models, options.videos, protocol=options.protocol, metric=options.metric, target=options.target
            )
        )
    for path in packed:
        note(f"report: {path}")
        images, what = options.images, "pictures"
        if images is None:
            images = procedural_images(IMAGES, 96 if reference is None else reference.image_size)
            what = "procedural pictures"
        elif isinstance(images, (str, os.PathLike)):
            what = f"pictures of {os.fspath(images)}"
        sections += model_sections(path, _label(path, found), reference, images, what, time=options.time)
    return sections + [sensitivity_section(path, content) for path, content in found.sensitivities]


def _label(path: Path, found: Sources) -> str:
    """The file's name, or its path where another has the same name."""
    return path.stem if sum(each.stem == path.stem for each in found.packed) == 1 else str(path.with_suffix(""))


def _contents(found: Sources) -> Section:
    counts = {
        "packed file": [str(path) for path in found.packed],
        "comparison": [str(folder) for folder, _ in found.comparisons],
        "demo": [str(folder) for folder, _ in found.demos],
        "unfinished run": [str(folder) for folder, _ in found.runs],
        "training log": [str(path) for path, _ in found.logs],
        "evaluation": [str(path) for path, _ in found.evaluations],
        "sensitivity": [str(path) for path, _ in found.sensitivities],
    }
    rows = [[kind, name] for kind, names in counts.items() for name in names]
    return Section("Sources", [Table(["what", "where"], rows, words=True)])
