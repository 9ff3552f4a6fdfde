"""J&F of videos by the float and the quantized model, and the masks where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from ..data.annotation import Annotation
from ..data.types import VideoSequence
from ..errors import DataError
from ..evaluation.jf import JFScores
from ..evaluation.miou import mask_iou
from ..evaluation.protocol import Protocol, following
from ..evaluation.tally import Metric, check_metric
from ..evaluation.video import check_sequences, score_masks, track_masks
from ..predictors import as_video_predictor, eval_mode
from ..progress import tqdm
from ..reporting.overlay import draw_masks, side_by_side
from ..spelling import counted
from ..threads import one_thread_if_small
from .figures import bars
from .page import Block, Section, Table, Text, drawing, picture

FLOAT = "float"
Masks: TypeAlias = Mapping[int, NDArray[np.bool_]]
_PROTOCOLS: dict[Protocol, str] = {
    "official": "as SAM2's vos_inference.py, without postprocessing",
    "deployed": "with each model's own settings",
}
_METRICS: dict[Metric, str] = {
    "davis": "objects and frames count as in DAVIS",
    "sav": "objects and frames count as in SA-V",
}
WORST = 3
"""Videos whose masks are shown."""


@dataclass(frozen=True)
class _Video:
    name: str
    scores: Mapping[str, JFScores]
    rows: list[tuple[str, NDArray[np.uint8], Masks]]


def video_section(
    models: Mapping[str, SAM2Base],
    sequences: Sequence[VideoSequence],
    *,
    protocol: Protocol = "official",
    metric: Metric = "sav",
    target: str = "auto",
    progress: bool = True,
) -> Section:
    """Track videos with every model, score them as ``qsam2 evaluate`` does, and show the worst.

    Args:
        models: What they are called -> the models, the float one first.
        sequences: Videos with masks.
        protocol: How the predictors are set up, as :func:`~qsam2_ao.evaluation.protocol.following` says.
        metric: "davis" or "sav", as :mod:`qsam2_ao.evaluation.tally` explains.
        target: How packed files were loaded, for the text.
        progress: Show a progress bar.

    Raises:
        DataError: A video cannot be scored, or the protocol or metric is unknown.
        MissingPackageError: vos-benchmark is not installed.
    """
    check_metric(metric)
    check_sequences(sequences)
    videos = [
        _look_at(models, sequence, protocol, metric)
        for sequence in tqdm(sequences, desc="videos of the report", unit="video", disable=not progress)
    ]
    first = next(iter(models))
    others = [name for name in models if name != first]

    def lost(video: _Video) -> float:
        return max((video.scores[first].jf - video.scores[name].jf for name in others), default=-video.scores[first].jf)

    videos.sort(key=lost, reverse=True)
    names = [video.name for video in videos]
    colours = ("#9aa0b5", "#3949ab", "#00897b", "#c62828", "#f9a825")
    chart = bars(names, {m: [video.scores[m].jf for video in videos] for m in models}, "J&F, %", colours)
    rows = []
    for model in models:
        scores = JFScores(tuple(score for video in videos for score in video.scores[model].objects))
        rows.append([model, *(f"{getattr(scores, name):.1f}" for name in ("jf", "j", "f"))])
    blocks: list[Block] = [
        Text(
            f"{counted(len(videos), 'video')}, tracked from the masks of the first frames. Protocol {protocol}: "
            f"{_PROTOCOLS[protocol]}; metric {metric}: {_METRICS[metric]}; packed files run with target {target}. "
            "The videos that lose most come first."
        ),
        Table([f"all {counted(len(scores.objects), 'object')}", "J&F", "J", "F"], rows),
        drawing(chart, "J&F of every video."),
    ]
    for video in videos[:WORST]:
        titles, pictures = zip(*((title, draw_masks(frame, masks)) for title, frame, masks in video.rows), strict=True)
        each = ", ".join(f"{model} {video.scores[model].jf:.1f}" for model in models)
        sheet = side_by_side(pictures, titles, columns=len(models) + 1)
        blocks.append(
            picture(sheet, f"{video.name}: J&F {each}. The frames where the masks differ most from the truth.")
        )
    return Section("J&F by video", blocks)


def _look_at(models: Mapping[str, SAM2Base], sequence: VideoSequence, protocol: Protocol, metric: Metric) -> _Video:
    scores, found = {}, {}
    for name, model in models.items():
        predictor = as_video_predictor(model)
        with eval_mode(predictor), following(predictor, protocol), one_thread_if_small(predictor):
            found[name] = dict(track_masks(predictor, sequence))
        objects = score_masks(sequence, found[name].items(), metric=metric)
        if not objects:
            raise DataError(
                f"{sequence.name}: none of its objects counts with the metric {metric}; leave the video out"
            )
        scores[name] = JFScores(objects)
    rows = []
    for frame, truth in sorted(_worst_frames(found, sequence)[:2], key=lambda pair: pair[0]):
        picture_ = np.asarray(sequence.frames[frame])
        shown = {f"truth, frame {frame}": truth.masks} | {name: masks[frame] for name, masks in found.items()}
        rows += [(title, picture_, _numbered(masks, sequence.object_ids)) for title, masks in shown.items()]
    return _Video(sequence.name, scores, rows)


def _worst_frames(found: Mapping[str, Mapping[int, Masks]], sequence: VideoSequence) -> list[tuple[int, Annotation]]:
    """Frames with a truth, and it; those where a model is farthest from it come first."""
    truths = [
        (t, annotation) for t in sequence.annotated if (annotation := sequence.annotation(t)) and annotation.masks
    ]

    def agreement(pair: tuple[int, Annotation]) -> float:
        frame, truth = pair
        known = True if truth.void is None else ~truth.void
        nothing = np.zeros(truth.size, bool)
        return min(
            float(np.mean([mask_iou(masks[frame].get(i, nothing) & known, truth.masks[i]) for i in truth.masks]))
            for masks in found.values()
        )

    return sorted(truths, key=agreement)


def _numbered(masks: Masks, object_ids: Sequence[int]) -> Masks:
    """With numbers from 1 on, which colours go by, in place of ids; where masks overlap, the first is on top."""
    numbers = {object_id: number for number, object_id in enumerate(object_ids, 1)}
    return {numbers[i]: masks[i] for i in sorted(masks, key=lambda i: numbers[i], reverse=True)}
