"""Objects through every video of a folder, from prompts of each: one result file a video, so that it can be resumed."""

from __future__ import annotations

import json
import mimetypes
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.frames import ClipFrames
from ..data.listing import VIDEO_SUFFIXES, list_pictures, natural_key
from ..data.masks import MaskReader
from ..errors import DataError
from ..files import atomic_write, check_output_folder
from ..progress import tqdm
from ..reporting.notes import note
from ..segmentation import parse_schedule, track_file
from ..segmentation.prompts import files_of_prompts
from ..segmentation.saving import CLIP_FILES, MASKS_AND_OVERLAY, SavedAs, check_kept, check_saved
from ..segmentation.schedule import Direction, ObjectPrompt, Schedule, check_object_id, check_schedule
from ..spelling import counted
from ..workspace import fingerprint, versions
from .models import load_runnable
from .shares import Share

RESULT = "tracked.json"


@dataclass(frozen=True)
class _Job:
    name: str
    video: Path
    prompts: Path


def is_folder_of_videos(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that holds videos, and not the frames of one.

    Args:
        path: Any path.

    Example:
        >>> is_folder_of_videos("clip.mp4")
        False
    """
    folder = Path(path)
    return folder.is_dir() and not list_pictures(folder) and bool(find_videos(folder))


def find_videos(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The videos of a folder by their names without endings: video files, and folders with pictures.

    Args:
        folder: The folder; hidden entries are left out.

    Raises:
        DataError: Two have one name.
    """
    found: dict[str, Path] = {}
    for path in sorted(Path(folder).iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            name = path.name
            if not list_pictures(path):
                continue
        else:
            name = path.stem
            if path.suffix.lower() not in VIDEO_SUFFIXES:
                if (mimetypes.guess_type(path.name)[0] or "").startswith("video/"):
                    note(f"{path} is left out: endings of videos are {', '.join(VIDEO_SUFFIXES)}")
                continue
        if name in found:
            raise DataError(f"{found[name]} and {path} have one name, and so have their results; rename one of them")
        found[name] = path
    return found


def track_videos(
    model: str,
    videos: str | os.PathLike[str],
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    direction: Direction = "forward",
    save: Collection[SavedAs] = MASKS_AND_OVERLAY,
    max_frames: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    target: str = "auto",
    share: Share | None = None,
) -> list[dict[str, Any]] | None:
    """Track the objects of every video of a folder, and write what :func:`track_file` writes to ``OUTPUT/VIDEO``.

    A video's ``tracked.json`` is written last: run again, those that have one with the same settings are left alone.

    Args:
        model: As for ``load_runnable``, as are ``checkpoint``, ``device`` and ``target``.
        videos: The folder.
        prompts: Another, with the prompts of each video: ``VIDEO.json`` as for
            :func:`~qsam2_ao.segmentation.parse_schedule`, or ``VIDEO/*.png``, masks of ids named like their frames, of
            which each object's first counts.
        output: The folder to write to.
        direction: As for :func:`track_file`, as are ``save`` and ``max_frames``.
        save: See :func:`track_file`.
        max_frames: Only the first so many frames of each.
        checkpoint: See ``load_runnable``.
        device: See ``load_runnable``.
        target: See ``load_runnable``.
        share: The videos that this process does.

    Returns:
        What each video's ``tracked.json`` says, or None where another process, or a later run, reports.

    Raises:
        DataError: A video has no prompts, or some that don't fit it; it is said before the first is tracked where the
            prompts' files show it.
        QSAM2Error: The model cannot be loaded, or a file not be written.

    Example:
        >>> track_videos("tiny.safetensors", "clips", "prompts", "outputs")  # doctest: +SKIP
    """
    check_saved(save)
    check_output_folder(output)
    share = Share() if share is None else share
    jobs = _jobs(Path(videos), Path(prompts))
    settings = {
        "model": fingerprint(model),
        "checkpoint": fingerprint(checkpoint),
        "direction": direction,
        "save": sorted(save),
        "max_frames": max_frames,
        "device": device,
        "target": target,
        "versions": versions("qsam2_ao", "torch", "sam2"),
    }

    def finished(job: _Job) -> dict[str, Any] | None:
        try:
            result = json.loads((Path(output) / job.name / RESULT).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return (
            result
            if isinstance(result, dict) and result.get("settings") == _settings_of(job, settings, output)
            else None
        )

    mine = share.of(jobs)
    todo = [job for job in mine if finished(job) is None]
    if len(todo) < len(mine):
        note(f"tracked before: {len(mine) - len(todo)} of {counted(len(mine), 'video')}")
    for job in todo:
        _schedule(job, ClipFrames(job.video, max_frames), direction)
        check_kept(_prompt_files(job), *_results(job, output))
    if todo:
        runnable = load_runnable(model, checkpoint, share.device(device), target)
        for job in tqdm(todo, desc="videos", unit="video"):
            frames = ClipFrames(job.video, max_frames)
            schedule = _schedule(job, frames, direction)
            folder = Path(output) / job.name
            if (folder / RESULT).exists():
                # It says what is there, which is about to change, and whose the masks are.
                written_before, masks = _results(job, output)
                for path in (*masks.glob("*.png"), *written_before):
                    path.unlink(missing_ok=True)
            folder.mkdir(parents=True, exist_ok=True)  # whatever its name ends with: it is the video's
            done = track_file(
                runnable, job.video, schedule, folder, direction=direction, save=save, frames=frames, progress=False
            )
            files = {kind: getattr(done, kind) for kind in ("masks", "overlay", "rle", "polygons")}
            written: dict[str, Any] = {
                "video": str(job.video),
                "frames": done.frames,
                **{kind: None if path is None else str(path) for kind, path in files.items()},
                "objects": [{"id": number, "frames_visible": count} for number, count in done.visible.items()],
                "settings": _settings_of(job, settings, output),
            }
            with atomic_write(folder / RESULT) as temporary:
                temporary.write_text(json.dumps(written, indent=2), "utf-8")
    if not share.all_done(lambda: [job.name for job in jobs if finished(job) is None], "video"):
        return None
    return [result for job in jobs if (result := finished(job)) is not None]


def _results(job: _Job, output: str | os.PathLike[str]) -> tuple[list[Path], Path]:
    """The files of a video's results, what is said about them first, and the folder of its masks."""
    folder = Path(output) / job.name
    return [folder / name for name in (RESULT, *CLIP_FILES.values())], folder / "masks"


def _prompt_files(job: _Job) -> list[Path]:
    return files_of_prompts(file=job.prompts) if job.prompts.is_file() else list_pictures(job.prompts)


def _settings_of(job: _Job, settings: dict[str, Any], output: str | os.PathLike[str]) -> dict[str, Any]:
    prompts = files_of_prompts(file=job.prompts) if job.prompts.is_file() else [job.prompts]
    files, masks = _results(job, output)
    mine = [*files, masks]  # which may lie among what is read
    return {
        **settings,
        "video": fingerprint(job.video, mine),
        "prompts": [fingerprint(path, mine) for path in prompts],
    }


def _jobs(videos: Path, prompts: Path) -> list[_Job]:
    if not prompts.is_dir():
        raise DataError(
            f"{prompts} is no folder, and {videos} holds several videos: name a folder with the prompts of each, "
            "VIDEO.json or VIDEO/*.png"
        )
    found = find_videos(videos)
    jobs, missing = [], []
    for name, video in found.items():
        file, folder = prompts / f"{name}.json", prompts / name
        places = [*([file] if file.exists() else []), *([folder] if folder.is_dir() and list_pictures(folder) else [])]
        if len(places) > 1:
            raise DataError(f"{places[0]} and {places[1]} are both prompts of {video}; remove one of them")
        if not places:
            missing.append(name)
        else:
            jobs.append(_Job(name, video, places[0]))
    if missing:
        some = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise DataError(
            f"{prompts} has no prompts of {some}: add {missing[0]}.json, or {missing[0]}/ with a mask, or take the "
            f"video out of {videos}"
        )
    return jobs


def _schedule(job: _Job, frames: ClipFrames, direction: Direction) -> Schedule:
    height, width = frames.size
    if job.prompts.is_dir():
        schedule = _first_masks(job, frames)
    else:
        schedule = parse_schedule((width, height), file=job.prompts, frames=len(frames))
    check_schedule(schedule, (width, height), len(frames), direction)
    return schedule


def _first_masks(job: _Job, frames: ClipFrames) -> Schedule:
    """Each object's first mask."""
    paths = list_pictures(job.prompts)
    if job.video.is_dir():
        places = {path.stem: t for t, path in enumerate(list_pictures(job.video))}
    else:
        places = {f"{t:05d}": t for t in range(len(frames))}
    read, seen, schedule = MaskReader(paths), set[int](), dict[int, dict[int, ObjectPrompt | None]]()
    for path in paths:
        if path.stem not in places:
            raise DataError(f"{path} has no frame of that name in {job.video}; a video file's are 00000, 00001, ...")
        if places[path.stem] >= len(frames):
            continue
        ids = read(path)
        if ids.shape != frames.size:
            raise DataError(
                f"{path} is {ids.shape[1]} x {ids.shape[0]} pixels, but {job.video} is {frames.size[1]} x "
                f"{frames.size[0]}; resize one of them"
            )
        for object_id in sorted(set(np.unique(ids).tolist()) - {0, 255} - seen):
            check_object_id(object_id, f"{path}: ")
            schedule.setdefault(places[path.stem], {})[object_id] = ObjectPrompt(mask=ids == object_id)
            seen.add(object_id)
    if not schedule:
        raise DataError(f"{job.prompts} has no mask that shows an object on a frame of {job.video}")
    return schedule
