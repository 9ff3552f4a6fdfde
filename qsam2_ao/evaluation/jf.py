"""J (region), F (boundary) and J&F of video object segmentation, computed by vos-benchmark.

The convention is DAVIS's for semi-supervised evaluation: the first frame, whose mask was given, and the last
one don't count. Every object counts the same, whatever its sequence. Which objects and frames count besides, and what
void is (:mod:`qsam2_ao.data.masks`), the metric says (:mod:`qsam2_ao.evaluation.tally`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.listing import list_pictures, natural_key
from ..data.masks import VOID, MaskReader
from ..data.types import Indexed
from ..errors import DataError
from ..progress import tqdm
from .tally import Metric, ObjectScore, Tally, check_ignore, check_metric, objects_that_count


@dataclass(frozen=True)
class JFScores:
    """The scores of all objects of a set of sequences.

    Attributes:
        objects: One score per object and sequence.
        skip_first_and_last: Whether the first and the last annotated frame were left out.
    """

    objects: tuple[ObjectScore, ...]
    skip_first_and_last: bool = True

    def __post_init__(self) -> None:
        if not self.objects:
            raise DataError("the annotations hold no objects; there is nothing to score")

    @property
    def j(self) -> float:
        """Mean J over all objects, in percent."""
        return float(np.mean([score.j for score in self.objects]))

    @property
    def f(self) -> float:
        """Mean F over all objects, in percent."""
        return float(np.mean([score.f for score in self.objects]))

    @property
    def jf(self) -> float:
        """J&F: the mean of J and F, in percent."""
        return (self.j + self.f) / 2

    def by_sequence(self) -> dict[str, JFScores]:
        """The scores of each sequence on its own."""
        names = dict.fromkeys(score.sequence for score in self.objects)
        return {
            name: JFScores(tuple(score for score in self.objects if score.sequence == name), self.skip_first_and_last)
            for name in names
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the means, and those of every sequence and object."""
        return {
            "jf": self.jf,
            "j": self.j,
            "f": self.f,
            "skip_first_and_last": self.skip_first_and_last,
            "sequences": {
                name: {
                    "jf": scores.jf,
                    "j": scores.j,
                    "f": scores.f,
                    "objects": {
                        str(score.object_id): {"jf": score.jf, "j": score.j, "f": score.f} for score in scores.objects
                    },
                }
                for name, scores in self.by_sequence().items()
            },
        }


def score_sequence(
    name: str,
    predicted: Indexed[NDArray[np.uint8]],
    truth: Indexed[NDArray[np.uint8] | None],
    *,
    object_ids: Iterable[int] | None = None,
    skip_first_and_last: bool = True,
    metric: Metric = "sav",
    ignore: int | None = None,
) -> tuple[ObjectScore, ...]:
    """Score one sequence's masks.

    Args:
        name: The sequence's name, for the scores and errors.
        predicted: uint8 ``[height, width]`` of object ids for each frame; 0 is background.
        truth: The same for the annotation, or ``None`` for a frame that has none and doesn't count. 255 is void, unless
            it is the only id, or one of ``object_ids``.
        object_ids: Count these objects only; all that the metric asks about by default.
        skip_first_and_last: Leave the first and the last annotated frame out, as DAVIS does.
        metric: "davis" or "sav", as :mod:`qsam2_ao.evaluation.tally` explains.
        ignore: The annotation's label of pixels that don't count, such as 255. By default "davis" takes void as
            background, and "sav" leaves it out.

    Returns:
        A score for each object that counts.

    Raises:
        DataError: The metric or the label is unknown, the numbers of frames or the sizes differ, or no frame is left to
            count.

    Example:
        >>> masks = np.ones((3, 8, 8), np.uint8)
        >>> score_sequence("still", masks, masks)[0].jf
        100.0
    """
    check_metric(metric)
    check_ignore(ignore)
    if len(predicted) != len(truth):
        raise DataError(f"{name}: {len(predicted)} predicted masks for {len(truth)} annotated frames")
    annotated = [t for t in range(len(truth)) if truth[t] is not None]
    check_lengths({name: len(annotated)}, skip_first_and_last=skip_first_and_last)
    counted = annotated[slice(1, -1) if skip_first_and_last else slice(None)]
    present = {int(i) for t in counted for i in np.unique(np.asarray(truth[t]))} - {0}
    named = None if object_ids is None else set(object_ids)
    has_void = VOID not in named if named is not None else metric == "davis" or present != {VOID}
    void = VOID if has_void else 0
    first = np.asarray(truth[annotated[0]]) if metric == "davis" else None
    wanted = set(objects_that_count(metric, first, present if named is None else named, void)) - {ignore}
    tally = Tally(name, wanted if named is None else wanted & named, metric)
    left_out = ignore if ignore is not None else void if metric == "sav" and has_void else None
    for t in counted:
        guess, right = np.asarray(predicted[t]), np.asarray(truth[t])
        if guess.shape != right.shape or guess.ndim != 2:
            raise DataError(
                f"{name}, frame {t}: the predicted mask is {list(guess.shape)}, the annotation "
                f"{list(right.shape)}; both must be [height, width] of one size"
            )
        counts = None if left_out is None else right != left_out
        for object_id in tally.object_ids:
            pair = guess == object_id, right == object_id
            tally.add(object_id, *(pair if counts is None else (mask & counts for mask in pair)))
    return tally.scores()


def check_lengths(counts: Mapping[str, int], *, skip_first_and_last: bool) -> None:
    """Refuse sequences of which no frame would count.

    Args:
        counts: Name -> how many annotated frames it has.
        skip_first_and_last: Whether the first and the last annotated frame don't count.

    Raises:
        DataError: There are such sequences; it names them.

    Example:
        >>> check_lengths({"bear": 3}, skip_first_and_last=True)
    """
    least = 3 if skip_first_and_last else 1
    short = [f"{name} ({count})" for name, count in counts.items() if count < least]
    if not short:
        return
    reason = ", since DAVIS's convention leaves the first and the last one out" if skip_first_and_last else ""
    advice = "count those too (--all-frames, or skip_first_and_last=False), or " if skip_first_and_last else ""
    raise DataError(
        f"too few annotated frames in {', '.join(short[:8])}{', ...' if len(short) > 8 else ''}: scoring needs {least}"
        f"{reason}; {advice}leave out these sequences"
    )


def score_folders(
    predictions: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    sequences: Sequence[str] | None = None,
    skip_first_and_last: bool = True,
    metric: Metric = "sav",
    ignore: int | None = None,
    progress: bool = False,
) -> JFScores:
    """Score a folder of predicted masks against a DAVIS-style folder of annotations.

    Args:
        predictions: ``<sequence>/*.png`` of object ids; frames without annotation may be there too.
        annotations: The same layout, with the same file names.
        sequences: The sequences to score; all that have annotations by default.
        skip_first_and_last: Leave the first and the last annotated frame out, as DAVIS does.
        metric: As for :func:`score_sequence`.
        ignore: Likewise.
        progress: Show a progress bar.

    Returns:
        The scores: with "davis" those of davis2017-evaluation for the same folders, with "sav" those that sav_evaluator
        and vos-benchmark print.

    Raises:
        DataError: A folder or mask is missing, unreadable or of another size; the message names it.

    Example:
        >>> score_folders("predicted", "DAVIS/Annotations/480p").jf
        100.0
    """
    root = Path(annotations)
    if sequences is None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder")
        names = (path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        sequences = sorted(names, key=natural_key)
    if not sequences:
        raise DataError(f"{root} has no sequences; each is a folder of PNG files")
    annotated = {name: list_pictures(root / name) for name in sequences}
    check_lengths({n: len(paths) for n, paths in annotated.items()}, skip_first_and_last=skip_first_and_last)
    objects: list[ObjectScore] = []
    for name, paths in tqdm(annotated.items(), desc="scoring", unit="video", disable=not progress):
        folder = Path(predictions) / name
        stems = {path.stem: path for path in list_pictures(folder)}
        chosen = [stems.get(path.stem, folder / path.name) for path in paths]
        truth, predicted = (list(map(MaskReader(files), files)) for files in (paths, chosen))
        objects += score_sequence(
            name, predicted, truth, skip_first_and_last=skip_first_and_last, metric=metric, ignore=ignore
        )
    return JFScores(tuple(objects), skip_first_and_last)
