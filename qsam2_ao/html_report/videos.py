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
from ..evaluation.jf import JFScores
from ..evaluation.miou import mask_iou
from ..evaluation.video import check_sequences, score_masks, track_masks
from ..predictors import as_video_predictor, eval_mode
from ..progress import tqdm
from ..reporting.overlay import draw_masks, side_by_side
from ..threads import one_thread_if_small
from .figures import bars
from .page import Block, Section, Table, Text, drawing, picture

FLOAT = "float"
Masks: TypeAlias = Mapping[int, NDArray[np.bool_]]
WORST = 3
"""Videos whose masks are shown."""


@dataclass(frozen=True)
class _Video:
    name: str
    scores: Mapping[str, JFScores]
    rows: list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]


def video_section(
    models: Mapping[str, SAM2Base], sequences: Sequence[VideoSequence], *, progress: bool = True
) -> Section:
    """Track videos with every model, score them, and show the worst.

    Args:
        models: What they are called -> the models, the float one first.
        sequences: Videos with masks.
        progress: Show a progress bar.

    Raises:
        DataError: A video cannot be scored.
        MissingPackageError: vos-benchmark is not installed.
    """
    check_sequences(sequences)
    videos = [
        _look_at(models, sequence)
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
    means = [
        [model, *(f"{np.mean([getattr(video.scores[model], k) for video in videos]):.1f}" for k in ("jf", "j", "f"))]
        for model in models
    ]
    blocks: list[Block] = [
        Text(f"{len(videos)} videos, tracked from the masks of their first frames. Those that lose most come first."),
        Table(["mean over videos", "J&F", "J", "F"], means),
        drawing(chart, "J&F of every video."),
    ]
    for video in videos[:WORST]:
        titles, pictures = zip(*((title, draw_masks(frame, ids)) for title, frame, ids in video.rows), strict=True)
        scores = ", ".join(f"{model} {video.scores[model].jf:.1f}" for model in models)
        sheet = side_by_side(pictures, titles, columns=len(models) + 1)
        blocks.append(
            picture(sheet, f"{video.name}: J&F {scores}. The frames where the masks differ most from the truth.")
        )
    return Section("J&F by video", blocks)


def _look_at(models: Mapping[str, SAM2Base], sequence: VideoSequence) -> _Video:
    scores, found = {}, {}
    for name, model in models.items():
        predictor = as_video_predictor(model)
        with eval_mode(predictor), one_thread_if_small(predictor):
            found[name] = dict(track_masks(predictor, sequence))
        scores[name] = JFScores(score_masks(sequence, found[name].items()), True)
    rows = []
    for frame, truth in sorted(_worst_frames(found, sequence)[:2], key=lambda pair: pair[0]):
        picture_ = np.asarray(sequence.frames[frame])
        rows.append((f"truth, frame {frame}", picture_, _ids(truth.masks)))
        rows += [(name, picture_, _ids(masks[frame])) for name, masks in found.items()]
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


def _ids(masks: Masks) -> NDArray[np.uint8]:
    """To draw them; where masks overlap, the smaller id is on top."""
    shape = next(iter(masks.values())).shape
    return Annotation((shape[0], shape[1]), masks).ids().astype(np.uint8)
