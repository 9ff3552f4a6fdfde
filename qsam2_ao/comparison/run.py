"""Running the models of a comparison in turn on pictures and clips."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..evaluation.miou import mask_iou
from ..export import ExportedSAM2
from ..progress import tqdm
from ..reporting.environment import environment
from ..segmentation import FrameMasks, StreamingPredictor, segment_image
from ..segmentation.schedule import ObjectPrompt, Schedule
from ..segmentation.video import check_heard, hear
from ..threads import one_thread_if_small
from .contenders import Contender, contenders, kind_of
from .memory import FRAMES, Prompted, peak_memory
from .results import Case, Comparison, ModelResult, SubjectResult
from .sheet import Shown, WorstCases
from .subjects import Frames, Subject, shipped_subjects

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

ROUNDS = 7
"""Pictures are taken again until there are so many times of each model."""
CLOSE = 90.0


def compare_models(
    names: Sequence[str],
    subjects: Sequence[Subject] | None = None,
    *,
    device: str = "cpu",
    memory: bool = True,
    worst: int = 12,
    progress: bool = True,
) -> tuple[Comparison, Image.Image | None]:
    """Ask several models the same, and say how far the others are from the first.

    All models are loaded at once and take each picture, and each frame, in turn: what slows the machine slows them all.

    Args:
        names: ``MODEL`` or ``MODEL@TARGET`` each: an embedded model, a packed file, a float checkpoint, or a folder of
            exported files. Without a target a packed file runs as is fastest here.
        subjects: From ``user_subjects`` or ``shipped_subjects``; by default the latter, of the largest model's input
            size.
        device: Where they run.
        memory: Whether to load and use each model again in a process of its own, to measure its peak memory.
        worst: How many cases to keep where they differ most.
        progress: Show progress bars.

    Returns:
        The comparison, and the contact sheet; None where all masks are alike.

    Raises:
        QSAM2Error: A model cannot be loaded, or a picture, clip or prompt cannot be used; the message names it.

    Example:
        >>> found, sheet = compare_models(["embedded", "w4a8.safetensors"], subjects)  # doctest: +SKIP
        >>> found.models[1].iou  # doctest: +SKIP
        97.1
    """
    if subjects is not None and not subjects:
        raise DataError("there is no picture and no clip to compare on")
    chosen = contenders(names)
    models = {contender.label: contender.load(device) for contender in chosen}
    if subjects is None:
        subjects = shipped_subjects(max(map(_input_side, models.values())))
    run = _Run(models, WorstCases(worst))
    results = [run.ask(subject) for subject in tqdm(subjects, desc="compare", unit="subject", disable=not progress)]
    run.repeat_pictures(subjects)
    used_on = _representatives(subjects)
    peaks = {
        contender.label: peak_memory(contender, device, used_on) if memory else None
        for contender in tqdm(chosen, desc="memory", unit="model", disable=not progress or not memory)
    }
    rows = tuple(run.result(contender, peaks[contender.label]) for contender in chosen)
    return Comparison(rows, tuple(results), run.worst.cases(), device, environment()), run.worst.sheet()


def _input_side(model: SAM2Base | ExportedSAM2) -> int:
    side: int = model.settings.image_size if isinstance(model, ExportedSAM2) else model.image_size
    return side


def _representatives(subjects: Sequence[Subject]) -> list[Prompted]:
    """The first picture and the first clip, for measuring memory."""
    found = []
    for kind in ("picture", "clip"):
        subject = next((subject for subject in subjects if subject.kind == kind), None)
        if subject is not None:
            frames, schedule = subject.open()
            start = min(schedule)
            count = 1 if kind == "picture" else min(FRAMES, len(frames) - start)
            prompts = {number: prompt for number, prompt in schedule[start].items() if prompt is not None}
            found.append(([frames[start + i] for i in range(count)], prompts))
    return found


class _Run:
    """Times, IoUs and scores of every model, as they come in."""

    def __init__(self, models: Mapping[str, SAM2Base | ExportedSAM2], worst: WorstCases) -> None:
        self.models, self.worst = models, worst
        self.first = next(iter(models))
        self._seconds: dict[str, dict[str, list[float]]] = {
            kind: {label: [] for label in models} for kind in ("picture", "clip")
        }
        self._iou: defaultdict[str, list[float]] = defaultdict(list)
        self._scores: defaultdict[str, list[float]] = defaultdict(list)
        self._warm = False

    def ask(self, subject: Subject) -> SubjectResult:
        """Ask all models about a picture or clip."""
        frames, schedule = subject.open()
        of_clip = subject.kind == "clip"
        cases = (
            self._track(subject.name, frames, schedule) if of_clip else self._segment(subject.name, frames, schedule)
        )
        means = {label: statistics.fmean(case.iou[label] for case in cases) for label in self._others}
        height, width = np.shape(frames[0])[:2]
        objects = len({number for said in schedule.values() for number in said})
        return SubjectResult(subject.name, subject.kind, (width, height), len(frames), objects, len(cases), means)

    @property
    def _others(self) -> list[str]:
        return list(self.models)[1:]

    def _segment(self, name: str, frames: Frames, schedule: Schedule) -> list[Case]:
        picture = np.asarray(frames[0])
        prompts = {number: prompt for number, prompt in schedule[0].items() if prompt is not None}
        if not self._warm:
            self._answers(picture, prompts)
        self._warm = True
        answers, seconds = self._answers(picture, prompts)
        self._keep("picture", seconds)
        for label, (_, scores) in answers.items():
            self._scores[label] += scores.values()
        masks = {label: {number: x > 0 for number, x in logits.items()} for label, (logits, _) in answers.items()}
        cases = [self._case(name, 0, number, {label: m[number] for label, m in masks.items()}) for number in prompts]
        self.worst.offer(
            cases,
            lambda case: Shown(
                picture, prompts[case.object_id], {label: m[case.object_id] for label, m in masks.items()}
            ),
        )
        return cases

    def _answers(
        self, picture: NDArray[np.uint8], prompts: Mapping[int, ObjectPrompt]
    ) -> tuple[dict[str, tuple[dict[int, NDArray[np.float32]], dict[int, float]]], dict[str, float]]:
        """Each model's logits and scores, in the models' order, and the seconds that it took."""
        answers, seconds = {}, {}
        for label in self._in_turn():
            model = self.models[label]
            with one_thread_if_small(model):
                started = time.perf_counter()
                answers[label] = segment_image(model, Image.fromarray(picture), prompts)
                seconds[label] = time.perf_counter() - started
        return {label: answers[label] for label in self.models}, seconds

    def _in_turn(self) -> list[str]:
        """The models, another one first each time."""
        done = sum(len(times[self.first]) for times in self._seconds.values())
        labels, start = list(self.models), done % len(self.models)
        return labels[start:] + labels[:start]

    def _keep(self, kind: str, seconds: Mapping[str, float]) -> None:
        for label, value in seconds.items():
            self._seconds[kind][label].append(value)

    def _case(self, name: str, frame: int, number: int, masks: Mapping[str, NDArray[np.bool_]]) -> Case:
        iou = {label: 100 * float(mask_iou(masks[label], masks[self.first])) for label in self._others}
        for label, value in iou.items():
            self._iou[label].append(value)
        return Case(name, frame, number, iou)

    def _track(self, name: str, frames: Frames, schedule: Schedule) -> list[Case]:
        """All models through a clip at once, frame by frame; only the frames that differ most are looked at again."""
        for model in self.models.values():
            check_heard(model, schedule)
        begin = min(schedule)
        streams = {label: StreamingPredictor(model, num_frames=len(frames)) for label, model in self.models.items()}
        cases: list[Case] = []
        index = -1
        shown: dict[int, tuple[float, Case, Shown]] = {}
        for index, frame in enumerate(frames):  # in order: a file is decoded once
            if index < begin:
                continue
            picture, said = np.asarray(frame), schedule.get(index, {})
            found, seconds = self._step(streams, picture, index, begin, said)
            if index > begin + 1 or (index > begin and len(frames) == begin + 2):  # the first step warms up
                self._keep("clip", seconds)
            for number in found[self.first].logits:
                masks = {label: m.logits[number] > 0 for label, m in found.items()}
                case = self._case(name, index, number, masks)
                cases.append(case)
                if number not in shown or case.least < shown[number][0]:
                    shown[number] = case.least, case, Shown(picture, said.get(number), masks)
        if index + 1 < len(frames):
            raise DataError(f"{name} breaks off after {index + 1} of {len(frames)} frames; convert it, or leave it out")
        self.worst.offer([case for _, case, _ in shown.values()], lambda case: shown[case.object_id][2])
        return cases

    def _step(
        self,
        streams: Mapping[str, StreamingPredictor],
        picture: NDArray[np.uint8],
        index: int,
        begin: int,
        said: Mapping[int, ObjectPrompt | None],
    ) -> tuple[dict[str, FrameMasks], dict[str, float]]:
        found, seconds = {}, {}
        for label in self._in_turn():
            stream = streams[label]
            masks = stream.start(picture, index) if index == begin else stream.step(picture)
            seconds[label] = masks.latency_ms / 1000
            found[label] = hear(stream, masks, said)
        return {label: found[label] for label in self.models}, seconds

    def repeat_pictures(self, subjects: Sequence[Subject]) -> None:
        """Take pictures again until there are enough times."""
        pictures = [subject for subject in subjects if subject.kind == "picture"][:ROUNDS]
        for subject in cycle(pictures):
            if len(self._seconds["picture"][self.first]) >= ROUNDS:
                break
            frames, schedule = subject.open()
            prompts = {number: prompt for number, prompt in schedule[0].items() if prompt is not None}
            self._keep("picture", self._answers(np.asarray(frames[0]), prompts)[1])

    def result(self, contender: Contender, peak: int | None) -> ModelResult:
        """What was found of a model."""
        label = contender.label
        ious = self._iou[label] or [100.0]  # the first one's with itself
        picture_ms, picture_speed = self._speed("picture", label)
        frame_ms, frame_speed = self._speed("clip", label)
        return ModelResult(
            label=label,
            model=contender.model,
            target=contender.target,
            kind=kind_of(self.models[label]),
            file_bytes=contender.file_bytes(),
            iou=statistics.fmean(ious),
            worst_iou=min(ious),
            close=100 * sum(value >= CLOSE for value in ious) / len(ious),
            score=statistics.fmean(self._scores[label]) if self._scores[label] else None,
            picture_ms=picture_ms,
            picture_speed=picture_speed,
            frame_ms=frame_ms,
            frame_speed=frame_speed,
            peak_bytes=peak,
        )

    def _speed(self, kind: str, label: str) -> tuple[float | None, float | None]:
        """Median milliseconds, and median of the first model's time over this one's in the same round."""
        own, first = self._seconds[kind][label], self._seconds[kind][self.first]
        if not own:
            return None, None
        ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
        return round(1e3 * statistics.median(own), 3), round(ratio, 3)
