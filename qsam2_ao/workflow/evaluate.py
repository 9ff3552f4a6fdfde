"""A named model's accuracy on a data set: one result file for each video, and a report of all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypedDict
from urllib.parse import quote

import numpy as np
from sam2.sam2_video_predictor import SAM2VideoPredictor

from ..data.types import VideoSequence
from ..errors import DataError, QConfigError
from ..evaluation.image import evaluate_image, image_samples
from ..evaluation.jf import JFScores
from ..evaluation.overall import IMAGES_PER_VIDEO
from ..evaluation.prompts import ImagePrompt, VideoPrompt, check_prompt
from ..evaluation.protocol import Autocast, Protocol, autocast, following
from ..evaluation.saving import MaskWriter
from ..evaluation.tally import Metric, ObjectScore, check_metric
from ..evaluation.video import check_sequences, score_video
from ..files import atomic_write, check_output_folder
from ..predictors import eval_mode
from ..progress import tqdm
from ..reporting.environment import environment
from ..reporting.notes import note
from ..spelling import counted
from ..threads import one_thread_if_small
from ..workspace import Workspace, fingerprint, versions
from .labelled import LabelledVideos
from .models import load_model
from .shares import Share


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured, and how.

    Attributes:
        protocol: "official" or "deployed", as for :func:`~qsam2_ao.evaluation.protocol.following`.
        metric: "davis" or "sav", as :mod:`qsam2_ao.evaluation.tally` explains.
        prompt: How objects of videos are told.
        image_prompts: How objects of images are told, each in turn.
        skip_first_and_last: Leave the first and the last annotated frame out of J&F.
        ignore: The annotation's label of pixels that don't count.
        autocast: "none", or "bf16" for bfloat16 where torch deems it safe.
    """

    protocol: Protocol
    metric: Metric
    prompt: VideoPrompt = "mask"
    image_prompts: tuple[ImagePrompt, ...] = ("box",)
    skip_first_and_last: bool = True
    ignore: int | None = None
    autocast: Autocast = "none"


class VideoResult(TypedDict):
    """What a video's file says: J and F of each object, and the IoU of objects of single frames, in percent."""

    name: str
    frames: int
    objects: dict[str, dict[str, float]]
    images: dict[str, list[list[float]]]


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        settings: How.
        results: Of each video, in the data set's order.
        about: What the report says besides: model, data, versions.
        pictures: Whether each video is a single picture, of which there is no J&F.
    """

    settings: EvaluationSettings
    results: tuple[VideoResult, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = False

    @property
    def scores(self) -> JFScores | None:
        """Those of all objects; None where nothing could be scored."""
        objects = tuple(
            ObjectScore(result["name"], int(object_id), score["j"], score["f"])
            for result in self.results
            for object_id, score in result["objects"].items()
        )
        return JFScores(objects, self.settings.skip_first_and_last) if objects else None

    def miou(self, prompt: ImagePrompt) -> float | None:
        """Mean IoU of images with a prompt, in percent; None where there are none."""
        ious = [iou for result in self.results for image in result["images"].get(prompt, ()) for iou in image]
        return float(np.mean(ious)) if ious else None

    def to_dict(self, *, per_object: bool = False) -> dict[str, Any]:
        """The report, as plain data for JSON.

        Args:
            per_object: List the scores of every sequence and object too.
        """
        scores = self.scores
        figures = {name: None if scores is None else getattr(scores, name) for name in ("j", "f", "jf")}
        images = {prompt: self.miou(prompt) for prompt in self.settings.image_prompts}
        report = {
            **self.about,
            "videos": len(self.results),
            "frames": sum(result["frames"] for result in self.results),
            "objects": 0 if scores is None else len(scores.objects),
            **figures,
            "miou": next(iter(images.values()), None),
            "miou_by_prompt": images,
            "settings": asdict(self.settings),
            "not_scored": [] if self.pictures else [r["name"] for r in self.results if not r["objects"]],
        }
        if per_object and scores is not None:
            report["sequences"] = scores.to_dict()["sequences"]
        return report


def evaluate(
    model: str,
    videos: LabelledVideos,
    settings: EvaluationSettings,
    *,
    output: str | os.PathLike[str] | None = None,
    save_masks: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    target: str = "auto",
    share: Share | None = None,
    per_object: bool = False,
) -> Evaluation | None:
    """Measure J&F of every video, and mIoU of some of their frames.

    Args:
        model: As for ``load_model``, as are ``checkpoint``, ``device`` and ``target``.
        videos: What :func:`~qsam2_ao.workflow.labelled.labelled_videos` opened.
        settings: What is measured, and how.
        output: Where a file for each video is kept, so that the same call goes on after an interruption, and
            ``report.json`` is written. None keeps nothing.
        save_masks: Where the masks are written, as :class:`~qsam2_ao.evaluation.saving.MaskWriter` says. Videos without
            the annotations to be scored are tracked for them too.
        checkpoint: See ``load_model``.
        device: See ``load_model``.
        target: See ``load_model``.
        share: The videos that this process does; needs ``output``.
        per_object: List the scores of every sequence and object in ``report.json`` too.

    Returns:
        What was measured, or None where another process reports it.

    Raises:
        DataError: A video cannot be used, said before the first is tracked where its files show it.
        QConfigError: Several shares have no output, or masks of pictures are to be saved.
        QSAM2Error: The model cannot be loaded, or a file not be written.
        MissingPackageError: vos-benchmark is not installed.

    Example:
        >>> settings = EvaluationSettings("official", "davis")
        >>> evaluate("tiny.safetensors", labelled_videos("DAVIS", split="val"), settings)  # doctest: +SKIP
    """
    share = Share() if share is None else share
    check_metric(settings.metric)
    check_prompt(settings.prompt, VideoPrompt)
    for prompt in settings.image_prompts:
        check_prompt(prompt, ImagePrompt)
    if share.count > 1 and output is None:
        raise QConfigError("processes that share the videos need a common --output FOLDER for their results")
    if save_masks is not None and videos.pictures:
        raise QConfigError(
            f"--save-masks is for the masks of videos, and {videos.about['data']} holds pictures: leave it out"
        )
    for folder in (output, save_masks):
        if folder is not None:
            check_output_folder(folder)
    mine = [(number, videos.sequences[number]) for number in share.of(range(len(videos.sequences)))]
    if save_masks is None and not videos.pictures:
        check_sequences([sequence for _, sequence in mine], skip_first_and_last=settings.skip_first_and_last)
    about = {
        "model": model,
        **videos.about,
        "protocol": settings.protocol,
        "metric": settings.metric,
        "target": target,
        "device": device,
        "masks": None if save_masks is None else str(save_masks),
        "versions": environment(),
    }
    written_here = [save_masks]
    if output is not None:
        written_here += [Path(output) / "videos", Path(output) / "report.json"]
    with TemporaryDirectory(prefix="qsam2-evaluate-") as temporary:
        work = Workspace(
            Path(temporary if output is None else output) / "videos",
            {
                "model": fingerprint(model),
                "checkpoint": fingerprint(checkpoint),
                "data": videos.fingerprint(written_here),
                "settings": asdict(settings),
                "masks": None if save_masks is None else str(Path(save_masks).resolve()),
                "device": device,
                "target": target,
                "versions": versions("qsam2_ao", "torch", "sam2"),
            },
        )
        files = {name: work.folder / f"{_file_name(name)}.json" for name in videos.names}
        written = None if save_masks is None else _Written(Path(save_masks), work.folder.name)
        if written is not None:
            for _, sequence in mine:
                written.check(sequence.name)
            for _, sequence in mine:
                if not written.has(sequence.name):
                    files[sequence.name].unlink(missing_ok=True)
        before = [sequence.name for _, sequence in mine if files[sequence.name].exists()]
        if before:
            note(f"evaluated before: {len(before)} of {counted(len(mine), 'video')}")
        todo = [(number, sequence) for number, sequence in mine if sequence.name not in before]
        if todo:
            predictor = load_model(model, checkpoint, share.device(device), target)
            with autocast(predictor.device, settings.autocast), following(predictor, settings.protocol):
                for number, sequence in tqdm(todo, desc="evaluate", unit="video"):
                    if written is not None:
                        written.begin(sequence.name)
                    work.result(
                        _file_name(sequence.name),
                        lambda number=number, sequence=sequence: _evaluate_one(  # type: ignore[misc]
                            predictor, sequence, number, settings, videos.pictures, save_masks
                        ),
                    )
        if not share.all_done(lambda: [name for name, file in files.items() if not file.exists()], "video"):
            return None
        results = tuple(work.result(_file_name(name), _not_there) for name in videos.names)
        done = Evaluation(settings, results, about, videos.pictures)
        if output is not None:
            with atomic_write(Path(output) / "report.json") as path:
                path.write_text(json.dumps(done.to_dict(per_object=per_object), indent=2, allow_nan=False))
    return done


def _file_name(video: str) -> str:
    """What a video's file is called: its name, or as much of it as file systems take."""
    name = os.fsencode(video)
    quoted = quote(name, safe="")
    if quoted.lower() == "settings":  # which the folder of results has a file of its own for
        return f"{quoted}-"
    return quoted if len(quoted) <= 150 else f"{quoted[:100]}-{hashlib.sha256(name).hexdigest()[:16]}"


@dataclass(frozen=True)
class _Written:
    """Which evaluation the masks of each video in a folder are of, since others may write to the same one."""

    folder: Path
    settings: str

    def _record(self, video: str) -> Path:
        return self.folder / ".qsam2" / _file_name(video)

    def check(self, video: str) -> None:
        """Refuse to replace masks of somebody else's, which may be the very ones that are compared with."""
        if not self._record(video).exists() and any((self.folder / video).rglob("*.png")):
            raise DataError(
                f"{self.folder / video} holds masks that no evaluation wrote, and they would be replaced; name another "
                "folder for --save-masks"
            )

    def has(self, video: str) -> bool:
        """Whether a video's are this one's."""
        record = self._record(video)
        return (self.folder / video).is_dir() and record.exists() and record.read_text("utf-8") == self.settings

    def begin(self, video: str) -> None:
        """Say so before they are written: what was there is an earlier one's no more, and goes."""
        if self._record(video).exists():
            for path in (self.folder / video).rglob("*.png"):
                path.unlink()
        with atomic_write(self._record(video)) as temporary:
            temporary.write_text(self.settings, "utf-8")


def _not_there() -> VideoResult:
    raise DataError("a video's result vanished while it was read; run the same command again")


def _evaluate_one(
    predictor: SAM2VideoPredictor,
    sequence: VideoSequence,
    number: int,
    settings: EvaluationSettings,
    picture: bool,
    save_masks: str | os.PathLike[str] | None,
) -> VideoResult:
    objects: Sequence[ObjectScore] = ()
    with eval_mode(predictor), one_thread_if_small(predictor):
        if not picture:
            objects = score_video(
                predictor,
                sequence,
                prompt=settings.prompt,
                skip_first_and_last=settings.skip_first_and_last,
                metric=settings.metric,
                ignore=settings.ignore,
                found=None if save_masks is None else MaskWriter(save_masks, sequence),
            )
        # Frames are drawn for each video by itself, so that every share draws the same.
        samples = image_samples([sequence], per_sequence=IMAGES_PER_VIDEO, seed=number, ignore=settings.ignore)
        images = {
            prompt: evaluate_image(predictor, samples, prompt=prompt).ious if samples else ()
            for prompt in settings.image_prompts
        }
    return {
        "name": sequence.name,
        "frames": len(sequence.frames),
        "objects": {str(score.object_id): {"j": score.j, "f": score.f} for score in objects},
        "images": {prompt: [list(image) for image in ious] for prompt, ious in images.items()},
    }
