"""J (region), F (boundary) and J&F of video object segmentation, computed by vos-benchmark.

Its convention is DAVIS's for semi-supervised evaluation: the first frame, whose mask was given, and the last
one don't count. Every object counts the same, whatever its sequence. An object's absence counts as 100 when
it is predicted. Pixels that the annotation calls void (:mod:`qsam2_ao.data.masks`) don't count.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.davis import LazyPictures
from ..data.listing import list_pictures, natural_key
from ..data.masks import VOID, MaskReader
from ..data.types import Indexed
from ..errors import DataError
from ..optional import needed
from ..progress import tqdm


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
        truth: The same for the annotation, or ``None`` for a frame that has none and doesn't count. 255 is void, unless
            it is the only id, or one of ``object_ids``.
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
    check_lengths({name: truth}, skip_first_and_last=skip_first_and_last)
    counted = annotated_frames(truth)[slice(1, -1) if skip_first_and_last else slice(None)]
    if object_ids is None:
        wanted = None
        has_void = bool({int(i) for t in counted for i in np.unique(np.asarray(truth[t]))} - {0, VOID})
    else:
        wanted = np.array([0, *object_ids])
        has_void = VOID not in wanted
    evaluator = vos.Evaluator(name=name)
    for t in counted:
        pair = [np.asarray(predicted[t]), np.asarray(truth[t])]
        if pair[0].shape != pair[1].shape or pair[0].ndim != 2:
            raise DataError(
                f"{name}, frame {t}: the predicted mask is {list(pair[0].shape)}, the annotation "
                f"{list(pair[1].shape)}; both must be [height, width] of one size"
            )
        if has_void:
            # As DAVIS's metrics do: neither the prediction nor the truth has anything there.
            void = pair[1] == VOID
            pair = [np.where(void | (mask == VOID), 0, mask) for mask in pair]
        if wanted is not None:
            pair = [np.where(np.isin(mask, wanted), mask, 0) for mask in pair]
        evaluator.feed_frame(*pair)
    j, f = evaluator.conclude()
    return tuple(ObjectScore(name, int(i), float(j[i]), float(f[i])) for i in sorted(j))


def annotated_frames(masks: Indexed[NDArray[np.uint8] | None]) -> list[int]:
    """The frames of a sequence that have an annotation.

    Args:
        masks: Those of a :class:`~qsam2_ao.data.types.VideoSequence`; files are not read.

    Example:
        >>> annotated_frames([np.ones((2, 2), np.uint8), None])
        [0]
    """
    if isinstance(masks, LazyPictures):
        return masks.present
    return [t for t in range(len(masks)) if masks[t] is not None]


def check_lengths(sequences: Mapping[str, Indexed[Any]], *, skip_first_and_last: bool) -> None:
    """Refuse sequences of which no frame would count.

    Args:
        sequences: Name -> one item for each frame, ``None`` where it has no annotation.
        skip_first_and_last: Whether the first and the last annotated frame don't count.

    Raises:
        DataError: There are such sequences; it names them.

    Example:
        >>> check_lengths({"bear": [1, 2, 3]}, skip_first_and_last=True)
    """
    counts = {name: len(annotated_frames(masks)) for name, masks in sequences.items()}
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
        names = (path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
        sequences = sorted(names, key=natural_key)
    if not sequences:
        raise DataError(f"{root} has no sequences; each is a folder of PNG files")
    annotated = {name: list_pictures(root / name) for name in sequences}
    check_lengths(annotated, skip_first_and_last=skip_first_and_last)
    objects: list[ObjectScore] = []
    for name, paths in tqdm(annotated.items(), desc="scoring", unit="video", disable=not progress):
        folder = Path(predictions) / name
        stems = {path.stem: path for path in list_pictures(folder)}
        chosen = [stems.get(path.stem, folder / path.name) for path in paths]
        truth, predicted = (list(map(MaskReader(files), files)) for files in (paths, chosen))
        objects += score_sequence(name, predicted, truth, skip_first_and_last=skip_first_and_last)
    return JFScores(tuple(objects), skip_first_and_last)
