"""J and F of one video's objects, frame by frame, as the official evaluators count them.

The figures of a frame are vos-benchmark's, which are those of davis2017-evaluation and of SA-V's sav_evaluator. These
two differ in what counts:

- "davis" (davis2017-evaluation, semi-supervised): the objects are 1 to the largest id of the first annotated frame, and
  every frame counts for each of them. An object that is gone counts as 100 while nothing is predicted for it, and as 0
  while something is. Void is background: what is predicted there is wrong. Objects that appear later don't count.
- "sav" (sav_evaluator, and vos-benchmark): the objects are those that a frame that counts shows, and an object's frames
  count from the first that has it or a prediction of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..optional import needed

Metric = Literal["davis", "sav"]


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


def check_metric(metric: str) -> None:
    """Check the name of a metric.

    Raises:
        DataError: It is unknown.
    """
    if metric not in get_args(Metric):
        raise DataError(f"metric must be one of {', '.join(get_args(Metric))}, got {metric!r}")


def check_ignore(ignore: int | None) -> None:
    """Check a label of pixels that do not count.

    Raises:
        DataError: It is none of 1 to 255; 0 is background.
    """
    if ignore is not None and not 1 <= ignore <= 255:
        raise DataError(f"ignore must be a label from 1 to 255, got {ignore}; 0 is background, which counts")


class Tally:
    """The scores of one video while its frames come.

    Args:
        name: The video's name, for the scores and errors.
        object_ids: The objects that may count.
        metric: "davis" or "sav".

    Raises:
        DataError: The metric is unknown.
        MissingPackageError: vos-benchmark is not installed.

    Example:
        >>> tally = Tally("still", [1], "davis")
        >>> tally.add(1, np.ones((8, 8), bool), np.ones((8, 8), bool))
        >>> tally.scores()[0].jf
        100.0
    """

    def __init__(self, name: str, object_ids: Iterable[int], metric: Metric) -> None:
        check_metric(metric)
        # OpenCV and scikit-image, which it imports, take a second.
        vos = needed("vos_benchmark.evaluator")
        self.name, self._metric = name, metric
        self._evaluators = {object_id: vos.Evaluator(name=name) for object_id in sorted(object_ids)}
        self._frames = dict.fromkeys(self._evaluators, 0)

    @property
    def object_ids(self) -> list[int]:
        """Those that may count."""
        return list(self._evaluators)

    def add(self, object_id: int, predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> None:
        """Count a frame for an object.

        Args:
            object_id: The object.
            predicted: bool ``[height, width]``.
            truth: The same for the annotation.
        """
        self._evaluators[object_id].feed_frame(predicted, truth)
        self._frames[object_id] += 1

    def scores(self) -> tuple[ObjectScore, ...]:
        """Those of the objects that count, by id."""
        found = []
        for object_id, evaluator in self._evaluators.items():
            frames = self._frames[object_id]
            # Frames before the first that has the object or a prediction are not in its lists.
            j, f = (list(values.get(True, ())) for values in (evaluator.object_iou, evaluator.boundary_f))
            if self._metric == "davis" and frames:
                j, f = ([1.0] * (frames - len(values)) + values for values in (j, f))
            elif True not in evaluator.objects_in_gt:
                continue
            found.append(ObjectScore(self.name, object_id, 100 * float(np.mean(j)), 100 * float(np.mean(f))))
        return tuple(found)


def objects_that_count(
    metric: Metric, first: NDArray[np.uint8] | None, object_ids: Iterable[int], void: int
) -> list[int]:
    """The ids that a metric asks about in a video of id maps.

    Args:
        metric: "davis" or "sav".
        first: uint8 ``[height, width]``, the first annotated frame's ids; only "davis" looks at it.
        object_ids: All ids of the annotation.
        void: The id that is none.

    Returns:
        For "davis" every id from 1 to the first frame's largest, also those that nothing shows, as
        davis2017-evaluation has it; for "sav" the given ones.

    Example:
        >>> objects_that_count("davis", np.array([[0, 3, 255]], np.uint8), [3, 4], 255)
        [1, 2, 3]
    """
    if metric == "sav":
        return [i for i in object_ids if i != void]
    assert first is not None
    return list(range(1, int(first[first != void].max(initial=0)) + 1))
