"""Small data sets in the layouts that the formats read, made of procedural videos."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qsam2_ao.data.outlines import mask_polygons
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.data.rle import encode_rle
from qsam2_ao.data.video import write_video

SIZE = (48, 64)


def video(index: int = 0, frames: int = 3) -> Sequence:
    return generate_sequence("test", index, num_frames=frames, size=SIZE)


def save(path: Path, pixels: NDArray[np.uint8] | NDArray[np.bool_]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def save_json(path: Path, record: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record))
    return path


def write_maps(root: Path, name: str, sequence: Sequence, *, masks: Iterable[int] | None = None, step: int = 1) -> None:
    """``JPEGImages`` and ``Annotations``; frames are named by their number times ``step``."""
    for t in range(len(sequence)):
        save(root / f"JPEGImages/{name}/{t * step:05d}.jpg", sequence.frames[t])
    for t in range(len(sequence)) if masks is None else masks:
        save(root / f"Annotations/{name}/{t * step:05d}.png", sequence.masks[t])


def overlapping(sequence: Sequence, t: int) -> dict[int, NDArray[np.bool_]]:
    """A mask for each object, and for number 0 all of them together, as SA-V's whole persons and their hands."""
    return {0: sequence.masks[t] > 0, **{i: sequence.masks[t] == i for i in sequence.object_ids}}


def write_sav(root: Path, name: str, sequence: Sequence, *, every: int = 2) -> None:
    """SA-V val: masks of every object in folders of their own."""
    for t in range(len(sequence)):
        save(root / f"JPEGImages_24fps/{name}/{t:05d}.jpg", sequence.frames[t])
        for number, mask in overlapping(sequence, t).items() if t % every == 0 else ():
            save(root / f"Annotations_6fps/{name}/{number:03d}/{t:05d}.png", mask.astype(np.uint8))


def masklet_record(sequence: Sequence, every: int = 4) -> dict[str, object]:
    """SA-V train's JSON."""
    rows = [[encode_rle(m) for m in overlapping(sequence, t).values()] for t in range(0, len(sequence), every)]
    return {"video_id": "sav_000001", "masklet": rows, "masklet_id": list(overlapping(sequence, 0))}


def write_sav_train(root: Path, name: str, sequence: Sequence) -> Path:
    """SA-V train; returns the file of masklets."""
    folder = root / "sav_000"
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / f"{name}.mp4", sequence.frames, fps=24)
    return save_json(folder / f"{name}_manual.json", masklet_record(sequence))


def write_sa1b(root: Path, number: int, sequence: Sequence) -> Path:
    """One picture of SA-1B; returns its file of masks."""
    folder = root / "sa_000000"
    save(folder / f"sa_{number}.jpg", sequence.frames[0])
    height, width = SIZE
    return save_json(
        folder / f"sa_{number}.json",
        {
            "image": {"image_id": number, "height": height, "width": width, "file_name": f"sa_{number}.jpg"},
            "annotations": [
                {"id": 900 + i, "segmentation": encode_rle(m), "area": int(m.sum())}
                for i, m in overlapping(sequence, 0).items()
            ],
        },
    )


def coco_record(sequences: list[Sequence]) -> dict[str, list[dict[str, object]]]:
    """COCO's instances: the first object as run lengths, others as polygons, and a crowd in the corner."""
    height, width = SIZE
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number, sequence in enumerate(sequences, 1):
        images.append({"id": number, "file_name": f"{sequence.name}.jpg", "height": height, "width": width})
        for i in sequence.object_ids:
            mask = sequence.masks[0] == i
            form = encode_rle(mask) if i == 1 else mask_polygons(mask)
            annotations.append({"id": 10 * number + i, "image_id": number, "iscrowd": 0, "segmentation": form})
        crowd = {"size": [height, width], "counts": [0, 5, height * width - 5]}
        annotations.append({"id": 10 * number, "image_id": number, "iscrowd": 1, "segmentation": crowd})
    return {"images": images, "annotations": annotations}


def write_coco(root: Path, sequences: list[Sequence]) -> Path:
    """COCO's instances of "val2017"; returns the JSON file."""
    for sequence in sequences:
        save(root / f"val2017/{sequence.name}.jpg", sequence.frames[0])
    return save_json(root / "annotations/instances_val2017.json", coco_record(sequences))


def write_panoptic(root: Path, sequence: Sequence) -> Path:
    """COCO's panoptic segments of "val2017", whose ids are beyond 8 bits; returns the JSON file."""
    save(root / f"val2017/{sequence.name}.jpg", sequence.frames[0])
    ids = sequence.masks[0].astype(np.int64) * 70001
    colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    save(root / f"annotations/panoptic_val2017/{sequence.name}.png", colours)
    segments = [{"id": 70001 * i, "iscrowd": int(i == 1)} for i in sequence.object_ids]
    height, width = SIZE
    return save_json(
        root / "annotations/panoptic_val2017.json",
        {
            "images": [{"id": 1, "file_name": f"{sequence.name}.jpg", "height": height, "width": width}],
            "annotations": [{"image_id": 1, "file_name": f"{sequence.name}.png", "segments_info": segments}],
        },
    )
