"""J&F of videos by the float and the quantized model, and the masks where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from ..data.types import VideoSequence
from ..evaluation import track_sequence
from ..evaluation.jf import JFScores, score_sequence
from ..evaluation.miou import mask_iou
from ..evaluation.video import check_sequences
from ..predictors import as_video_predictor, eval_mode
from ..progress import tqdm
from ..reporting.overlay import draw_masks, side_by_side
from ..threads import one_thread_if_small
from .figures import bars
from .page import Block, Section, Table, Text, drawing, picture

FLOAT = "float"
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
            found[name] = track_sequence(predictor, sequence)
        scored = score_sequence(sequence.name, found[name], sequence.masks, object_ids=sequence.object_ids)
        scores[name] = JFScores(tuple(scored), True)
    worst = sorted(_worst_frames(found, sequence)[:2])
    rows = []
    for frame in worst:
        truth = sequence.masks[frame]
        assert truth is not None
        picture_ = np.asarray(sequence.frames[frame])
        rows.append((f"truth, frame {frame}", picture_, np.where(truth == 255, 0, truth).astype(np.uint8)))
        rows += [(name, picture_, ids[frame]) for name, ids in found.items()]
    return _Video(sequence.name, scores, rows)


def _worst_frames(found: Mapping[str, NDArray[np.uint8]], sequence: VideoSequence) -> list[int]:
    """Frames with a truth, those where a model is farthest from it first."""

    def agreement(frame: int) -> float:
        truth = sequence.masks[frame]
        known = truth != 255
        return min(
            float(np.mean([mask_iou((ids[frame] == i) & known, truth == i) for i in sequence.object_ids]))
            for ids in found.values()
        )

    return sorted((t for t in range(len(sequence.frames)) if sequence.masks[t] is not None), key=agreement)
