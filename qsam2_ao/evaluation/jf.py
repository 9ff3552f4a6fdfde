"""J (region), F (boundary) and J&F of video object segmentation, computed by vos-benchmark.

Its convention is DAVIS's for semi-supervised evaluation: the first frame, whose mask was given, and the last
one don't count. Every object counts the same, whatever its sequence. An object's absence counts as 100 when
it is predicted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.pictures import list_pictures, read_ids
from ..data.types import Indexed
from ..errors import DataError
from ..optional import needed


@dataclass(frozen=True)
class ObjectScore:
    """One object's mean over the frames, in percent.

    Attributes:
        sequence: The sequence's name.
        object_id: The object's id.
        j: Region: intersection over union.
        f: Boundary: F-measure within 0.8% of the image's diagonal.
    """

    sequence: str
    object_id: int
    j: float
    f: float

    @property
    def jf(self) -> float:
        """The mean of J and F."""
        return (self.j + self.f) / 2


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
) -> tuple[ObjectScore, ...]:
    """Score one sequence's masks.

    Args:
        name: The sequence's name, for the scores and errors.
        predicted: uint8 ``[height, width]`` of object ids for each frame; 0 is background.
        truth: The same for the annotation, or ``None`` for a frame that has none and doesn't count.
        object_ids: Count these objects only; all that the annotation has by default.
        skip_first_and_last: Leave the first and the last annotated frame out, as DAVIS does.

    Returns:
        A score for each object that occurs in a frame that counts.

    Raises:
        DataError: The numbers of frames or the sizes differ, or no frame is left to count.

    Example:
        >>> masks = np.ones((3, 8, 8), np.uint8)
        >>> score_sequence("still", masks, masks)[0].jf
        100.0
    """
    # OpenCV and scikit-image, which it imports, take a second.
    vos = needed("vos_benchmark.evaluator")

    if len(predicted) != len(truth):
        raise DataError(f"{name}: {len(predicted)} predicted masks for {len(truth)} annotated frames")
    counted = [t for t, mask in enumerate(truth) if mask is not None]
    counted = counted[1:-1] if skip_first_and_last else counted
    if not counted:
        raise DataError(
            f"{name}: no annotated frame is left to count; DAVIS's convention leaves the first and the last one "
            "out, pass skip_first_and_last=False for short sequences"
        )
    wanted = None if object_ids is None else np.array([0, *object_ids])
    evaluator = vos.Evaluator(name=name)
    for t in counted:
        pair = [np.asarray(predicted[t]), np.asarray(truth[t])]
        if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
            raise DataError(
                f"{name}, frame {t}: the predicted mask is {list(pair[0].shape)}, the annotation "
                f"{list(pair[1].shape)}; both must be [height, width] of one size"
            )
        if wanted is not None:
            pair = [np.where(np.isin(mask, wanted), mask, 0) for mask in pair]
        evaluator.feed_frame(*pair)
    j, f = evaluator.conclude()
    return tuple(ObjectScore(name, int(i), float(j[i]), float(f[i])) for i in sorted(j))


def score_folders(
    predictions: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    sequences: Sequence[str] | None = None,
    skip_first_and_last: bool = True,
    progress: bool = False,
) -> JFScores:
    """Score a folder of predicted masks against a DAVIS-style folder of annotations.

    Args:
        predictions: ``<sequence>/*.png`` of object ids; frames without annotation may be there too.
        annotations: The same layout, with the same file names.
        sequences: The sequences to score; all that have annotations by default.
        skip_first_and_last: Leave the first and the last annotated frame out, as DAVIS does.
        progress: Show a progress bar.

    Returns:
        The scores, equal to those that vos-benchmark prints for the same folders.

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
        sequences = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    if not sequences:
        raise DataError(f"{root} has no sequences; each is a folder of PNG files")
    objects: list[ObjectScore] = []
    for name in tqdm(sequences, desc="scoring", unit="video", disable=not progress):
        truth_paths = list_pictures(root / name)
        truth = [read_ids(path) for path in truth_paths]
        predicted = [read_ids(Path(predictions) / name / path.name) for path in truth_paths]
        objects += score_sequence(name, predicted, truth, skip_first_and_last=skip_first_and_last)
    return JFScores(tuple(objects), skip_first_and_last)
