"""What compact memories cost in J&F, and what they save in time and bytes.

``python -m qsam2_ao.benchmark.memories MODEL --data FOLDER`` measures, goes on after an interruption, and draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from ..checkpoint import load_qsam2
from ..data.procedural import generate_sequence
from ..data.types import VideoSequence
from ..deploy.memories import use_compact_memories
from ..errors import QConfigError
from ..evaluation.video import evaluate_video
from ..files import atomic_write
from ..progress import tqdm
from ..reporting.environment import environment
from ..reporting.figures import new_figure, save_figure
from ..spelling import unknown_name
from ..workflow.labelled import labelled_videos
from ..workflow.models import load_model
from ..workspace import Workspace, fingerprint
from .inference.workload import InferenceWorkload
from .processes import alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROCEDURAL = "procedural"
ROUNDS = 2
_SEED, _MEMORIES, _POINTER_TOKENS = 0, 7, 64


@dataclass(frozen=True)
class Choice:
    """A way to keep and read memories, as :func:`~qsam2_ao.deploy.memories.use_compact_memories` takes it."""

    name: str
    codes: bool = False
    frames: int | None = None
    merge: bool = True
    tokens: float | None = None

    def apply(self, model: SAM2Base) -> None:
        """Set a model up."""
        use_compact_memories(model, **{key: value for key, value in asdict(self).items() if key != "name"})


_FRAMES = (4, 2, 1)
CHOICES = (
    Choice("SAM2"),
    Choice("codes", codes=True),
    *(Choice(f"merged to {n}", frames=n) for n in _FRAMES),
    *(Choice(f"last {n}", frames=n, merge=False) for n in _FRAMES),
    *(Choice(f"{share:.0%} of tokens", tokens=share) for share in (0.75, 0.5)),
    Choice("codes, last 2", codes=True, frames=2, merge=False),
)


def measure(
    model: str,
    data: Sequence[str],
    folder: Path,
    *,
    target: str = "auto",
    names: Sequence[str] = (),
    videos: int = 8,
    timed: tuple[str, int] = ("sam2.1-t", 1024),
) -> dict[str, Any]:
    """Score and time every choice; what an earlier run with the same settings finished is taken over.

    Args:
        model: A packed file whose memory attention has quantized inputs.
        data: Folders of data sets, and :data:`PROCEDURAL` for generated videos of the split val.
        folder: Where the kept steps go.
        target: How packed files run.
        names: Only the choices of these names; SAM2's own is always among them.
        videos: Of the procedural ones.
        timed: The model, with random weights, and the input's side whose memory attention is timed.

    Returns:
        {environment, settings, records}: of each choice the J&F on each data set, bytes of a memory, and its time over
        that of SAM2's own.

    Raises:
        QConfigError: An unknown choice, or two data sets of one name.
    """
    known = [choice.name for choice in CHOICES]
    for name in names:
        if name not in known:
            raise QConfigError(unknown_name("choice", name, known))
    if len({Path(place).name for place in data}) < len(data):
        raise QConfigError(f"two of the data sets have one name, by which they are told apart: {', '.join(data)}")
    chosen = [choice for choice in CHOICES if choice.name in (*names, CHOICES[0].name) or not names]
    settings = {"target": target, "videos": videos, "timed": list(timed), "seed": _SEED, "rounds": ROUNDS}
    prints = [fingerprint(path) for path in (model, *data)]
    work = Workspace(folder / "memories.work", {**settings, "files": prints, "environment": environment()})
    records: list[dict[str, Any]] = []
    files = folder / "memories.work" / "files"
    with work.locked():
        speed = work.result("time", lambda: alone(partial(_times, timed, target, files)))
        for choice in tqdm(chosen, desc="memories", unit="choice"):
            scores = {
                Path(place).name: work.result(
                    f"{choice.name} {Path(place).name}", partial(_score, choice, model, place, target, videos)
                )
                for place in data
            }
            records.append({**asdict(choice), **speed[choice.name], "jf": scores})
    return {
        "command": "python -m qsam2_ao.benchmark.memories",
        "environment": environment(),
        "settings": {**settings, "model": Path(model).name, "data": [Path(place).name for place in data]},
        "records": records,
    }


def _score(choice: Choice, model: str, place: str, target: str, videos: int) -> float:
    predictor = load_model(model, target=target)
    choice.apply(predictor)
    if place == PROCEDURAL:
        drawn: list[VideoSequence] = [generate_sequence("val", i, num_frames=16) for i in range(videos)]
        return evaluate_video(predictor, drawn).jf
    found = labelled_videos(place)
    return evaluate_video(predictor, found.sequences, protocol=found.protocol, metric=found.metric).jf


def _times(timed: tuple[str, int], target: str, files: Path) -> dict[str, dict[str, float]]:
    """Of each choice: "time", CPU seconds of memory attention with seven memories over those of SAM2's own; "bytes"."""
    workload = InferenceWorkload(*timed, 1, files)
    torch.set_num_threads(1)
    model: SAM2Base = load_qsam2(workload.packed("w4a8"), target=target)
    inputs = _inputs(model)
    seconds: dict[str, list[float]] = {choice.name: [] for choice in CHOICES}
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model.memory_attention(**inputs)
        for _ in range(ROUNDS):
            for choice in CHOICES:
                choice.apply(model)
                started = time.process_time()
                model.memory_attention(**inputs)
                seconds[choice.name].append(time.process_time() - started)
    places = inputs["curr"].shape[0] * model.mem_dim
    own = seconds[CHOICES[0].name]
    return {
        choice.name: {
            "time": round(statistics.median(t / o for t, o in zip(seconds[choice.name], own, strict=True)), 3),
            "bytes": float(places * (1 if choice.codes else 2)),
        }
        for choice in CHOICES
    }


def _inputs(model: SAM2Base) -> dict[str, Any]:
    """Random features and memories of one object; the first memory is of a prompted frame."""
    generator = torch.Generator().manual_seed(_SEED)
    tokens = (model.image_size // model.backbone_stride) ** 2

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    ages = torch.arange(_MEMORIES)[:, None, None, None]
    position = (random(1, tokens, 1, model.mem_dim) + ages).flatten(0, 1)
    return {
        "curr": random(tokens, 1, model.hidden_dim),
        "curr_pos": random(tokens, 1, model.hidden_dim),
        "memory": random(_MEMORIES * tokens + _POINTER_TOKENS, 1, model.mem_dim),
        "memory_pos": torch.cat([position, random(_POINTER_TOKENS, 1, model.mem_dim)]),
        "num_obj_ptr_tokens": _POINTER_TOKENS,
    }


def picture(results: Mapping[str, Any]) -> Figure:
    """J&F against the time of memory attention, a panel for each data set; the line joins what nothing beats in both.

    Args:
        results: What :func:`measure` returned.
    """
    data = results["settings"]["data"]
    figure = new_figure(figsize=(5.5 * len(data), 4.2), layout="constrained")
    kinds = {"merged": ("C0", "s"), "last": ("C1", "o"), "tokens": ("C2", "^"), "": ("0.3", "*")}
    for axis, name in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
        points = [(record["time"], record["jf"][name], record) for record in results["records"]]
        front = pareto([(x, y) for x, y, _ in points])
        axis.plot(*zip(*front, strict=True), color="0.7", zorder=0)
        for x, y, record in points:
            colour, marker = next(value for word, value in kinds.items() if word in record["name"])
            fill = colour if record["codes"] else "none"
            axis.scatter(x, y, marker=marker, s=60, facecolors=fill, edgecolors=colour)
            below = record["codes"] or "merged" in record["name"]  # beside others of the same time
            axis.annotate(
                record["name"],
                (x, y),
                xytext=(5, -10 if below else 4),
                textcoords="offset points",
                fontsize=7,
            )
        axis.set(title=name, xlabel="time of memory attention (SAM2's own: 1)", ylabel="J&F")
        axis.margins(x=0.25, y=0.1)
        axis.grid(alpha=0.3)
    figure.suptitle("Filled: memories kept as codes, half the bytes", fontsize=9)
    return figure


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: less first, more second; by the first.

    Example:
        >>> pareto([(1.0, 80.0), (0.5, 79.0), (0.7, 78.0)])
        [(0.5, 79.0), (1.0, 80.0)]
    """
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def main(arguments: Sequence[str] | None = None) -> None:
    """Write ``memories.json`` and ``memories.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a packed file")
    parser.add_argument("--data", action="append", default=[], metavar="FOLDER", help="a data set; repeatable")
    parser.add_argument("--choice", action="append", default=[], metavar="NAME", help="only these; repeatable")
    parser.add_argument("--target", default="auto")
    parser.add_argument("--name", default="memories", help="of the files")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    given = parser.parse_args(arguments)
    data = given.data or [PROCEDURAL]
    results = measure(given.model, data, given.output, target=given.target, names=given.choice)
    with atomic_write(given.output / f"{given.name}.json") as path:
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(save_figure(picture(results), given.output / f"{given.name}.png"))


if __name__ == "__main__":
    main()
