"""What a comparison found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..reporting.size import human_bytes
from ..rich_repr import ShowsTable
from ..spelling import counted


@dataclass(frozen=True)
class ModelResult:
    """One model.

    Attributes:
        label: What tables call it.
        model: The name or path that loads it.
        target: How a packed file ran.
        kind: "float", the recipe of a packed file, or the runtime of exported ones.
        file_bytes: Of its file, or of all files of its folder.
        iou: Mean IoU of its masks with the first model's, in percent; over masks of pictures, and of objects on frames.
        worst_iou: The least of them.
        close: Share of them of 90 % or more, in percent.
        score: Mean of its own estimates of the IoU on pictures, 0 to 1; None without pictures.
        picture_ms: Median time for a picture with all its prompts, milliseconds.
        picture_speed: How many times faster than the first model: median over pictures, which the models took in turn.
        frame_ms: Median time to track all objects of a clip to the next frame, milliseconds.
        frame_speed: As ``picture_speed``, over frames.
        peak_bytes: The most memory that a process of its own took to load it and to use it, Python and torch included;
            on a GPU, what torch took of the GPU's. None where it was not measured.
    """

    label: str
    model: str
    target: str
    kind: str
    file_bytes: int
    iou: float
    worst_iou: float
    close: float
    score: float | None
    picture_ms: float | None
    picture_speed: float | None
    frame_ms: float | None
    frame_speed: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class SubjectResult:
    """One picture or clip.

    Attributes:
        name: What it is called.
        kind: "picture" or "clip".
        size: Width and height in pixels.
        frames: How many.
        objects: How many were asked for.
        masks: How many were compared: of each object on each frame from its first one on.
        iou: Label of each model but the first -> mean IoU of its masks with the first's, in percent.
    """

    name: str
    kind: str
    size: tuple[int, int]
    frames: int
    objects: int
    masks: int
    iou: Mapping[str, float]


@dataclass(frozen=True)
class Case:
    """A mask that the models differ about.

    Attributes:
        subject: Name of the picture or clip.
        frame: Of the clip; 0 of a picture.
        object_id: Which object.
        iou: Label of each model but the first -> IoU with the first's mask, in percent.
    """

    subject: str
    frame: int
    object_id: int
    iou: Mapping[str, float]

    @property
    def least(self) -> float:
        """The IoU of the model that differs most."""
        return min(self.iou.values())

    @property
    def title(self) -> str:
        """Where it is."""
        return f"{self.subject}, {f'frame {self.frame}, ' if self.frame else ''}object {self.object_id}"


@dataclass(frozen=True)
class Comparison(ShowsTable):
    """A comparison of models.

    Attributes:
        models: In the order given; the others are compared with the first.
        subjects: What they were compared on.
        cases: Where they differ most, the worst first.
        device: Where they ran.
        environment: Processor, versions and the like.
    """

    models: tuple[ModelResult, ...]
    subjects: tuple[SubjectResult, ...]
    cases: tuple[Case, ...]
    device: str
    environment: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"kind": "comparison", **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that :meth:`to_dict` made plain.

        Raises:
            KeyError: Something is missing, or (TypeError) has another form.
        """
        return cls(
            tuple(ModelResult(**row) for row in data["models"]),
            tuple(SubjectResult(**{**row, "size": tuple(row["size"])}) for row in data["subjects"]),
            tuple(Case(**row) for row in data["cases"]),
            data["device"],
            data["environment"],
        )

    def table(self) -> Table:
        """A rich table with a column for each model, which narrow terminals have room for."""
        table = Table(title=escape(f"{self.described}; compared with {self.models[0].label}"), title_justify="left")
        table.add_column("")
        for model in self.models:
            table.add_column(escape(model.label), justify="right", overflow="fold")
        for heading, cells in self.columns().items():
            table.add_row(heading, *cells)
        return table

    def columns(self) -> dict[str, list[str]]:
        """Heading -> what it says of each model; what was measured of none is left out."""
        first = self.models[0]

        def of_each(say: Callable[[ModelResult], str | None]) -> list[str]:
            return [say(model) or "-" for model in self.models]

        def beside_first(say: Callable[[ModelResult], str]) -> list[str]:
            return of_each(lambda model: None if model is first else say(model))

        found = {
            "kind": of_each(lambda model: model.kind),
            "IoU %": beside_first(lambda model: f"{model.iou:.1f}"),
            "worst": beside_first(lambda model: f"{model.worst_iou:.1f}"),
            "90 % or more": beside_first(lambda model: f"{model.close:.0f} %"),
            "own score": of_each(lambda model: None if model.score is None else f"{model.score:.2f}"),
            "ms a picture": of_each(lambda model: _number(model.picture_ms)),
            "speed, pictures": of_each(lambda model: _times(model.picture_speed)),
            "ms a frame": of_each(lambda model: _number(model.frame_ms)),
            "speed, clips": of_each(lambda model: _times(model.frame_speed)),
            "file": of_each(lambda model: human_bytes(model.file_bytes)),
            "smaller": beside_first(lambda model: f"{first.file_bytes / max(model.file_bytes, 1):.1f}x"),
            "peak memory": of_each(lambda model: None if model.peak_bytes is None else human_bytes(model.peak_bytes)),
        }
        return {heading: cells for heading, cells in found.items() if set(cells) != {"-"}}

    @property
    def described(self) -> str:
        """What it was compared on, in words."""
        masks = sum(subject.masks for subject in self.subjects)
        counts = {kind: sum(subject.kind == kind for subject in self.subjects) for kind in ("picture", "clip")}
        parts = [counted(count, kind) for kind, count in counts.items() if count]
        return f"{' and '.join(parts)}, {counted(masks, 'mask')}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}x"
