"""The whole journey on the embedded model: float, calibration, training, packed bits, reloaded, evaluated."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sam2.modeling.sam2_base import SAM2Base

from ..data.procedural import Sequence as Video
from ..data.procedural import generate_sequence, generate_split
from ..errors import QConfigError
from ..evaluation import track_sequence
from ..evaluation.overall import evaluate_model
from ..files import atomic_write, check_output_folder
from ..models.embedded import EMBEDDED_MODELS, EMBEDDED_WEIGHTS
from ..optional import needed
from ..recipe import PRESETS
from ..reporting.notes import note
from ..reporting.overlay import draw_masks, save_picture, side_by_side
from ..reporting.size import file_size
from ..reporting.tables import ModelRow
from ..spelling import unknown_name
from ..threads import one_thread_if_small
from ..workspace import Workspace, fingerprint, versions
from . import EMBEDDED
from .data import procedural_images
from .models import load_model
from .photographs import MODEL, draw_photographs
from .quantize import QuantizationJob, quantize_model

FRAMES = 16
PICTURES = 3


@dataclass(frozen=True)
class DemoResult:
    """What the demo found and wrote.

    Attributes:
        rows: The float model's figures, then each preset's.
        pictures: Files of masks side by side: of the first videos, and of photographs.
        settings: What the figures depend on.
    """

    rows: tuple[ModelRow, ...]
    pictures: tuple[Path, ...]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "rows": [row.to_dict() for row in self.rows],
            "pictures": [str(path) for path in self.pictures],
            "settings": self.settings,
        }


def run_demo(
    output: str | os.PathLike[str],
    presets: Sequence[str] = ("w4a8", "w2a8"),
    *,
    steps: int = 30,
    images: int = 50,
    videos: int = 16,
    lr: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> DemoResult:
    """Take the embedded model from float to packed bits, and compare.

    Writes the packed files, pictures of the masks side by side and ``results.json``. The last picture shows masks on
    photographs, by the larger embedded model at the same bits, calibrated and not trained. Run again, it goes on where
    it stopped.

    Args:
        output: The folder to write to.
        presets: What to quantize to.
        steps: Training steps for each preset.
        images: Calibrate on so many images.
        videos: Evaluate on so many videos of the test split.
        lr: Peak learning rate of weights; None for that of ``qsam2 quantize``.
        seed: Seed of everything random.
        device: Where to work.

    Returns:
        The figures and files.

    Raises:
        QConfigError: A preset is unknown.
        QSAM2Error: A step failed, or a file cannot be written.

    Example:
        >>> run_demo("outputs/demo", steps=200).rows[0].jf  # doctest: +SKIP
    """
    if unknown := [name for name in presets if name not in PRESETS]:
        raise QConfigError(unknown_name("preset", unknown[0], PRESETS))
    output = Path(output)
    check_output_folder(output)
    needed("vos_benchmark")
    needed("skimage")
    settings = {
        "steps": steps,
        "images": images,
        "videos": videos,
        "lr": lr,
        "seed": seed,
        "model": fingerprint(EMBEDDED_WEIGHTS),
        "model of photographs": fingerprint(EMBEDDED_MODELS[MODEL].weights),
        "versions": versions("qsam2_ao", "torch"),
    }
    training = None
    if steps:
        from ..training.settings import TrainingSettings

        training = TrainingSettings(steps, lr)
    work = Workspace(output / "work", settings)
    model = load_model(EMBEDDED, device=device)
    tests = [generate_sequence("test", i, num_frames=FRAMES) for i in range(min(PICTURES, videos))]

    with work.locked(), one_thread_if_small(model):
        note("float: evaluating")
        scores, masks = _evaluate(work, "float", model, videos, tests)
        rows = [ModelRow("float", "16 / 32", file_size(EMBEDDED_WEIGHTS), **scores)]
        columns = {"float": masks}
        for name in presets:
            packed = work.folder / f"{name}.safetensors"
            if not packed.exists():
                calibration = procedural_images(images, model.image_size)
                quantize_model(
                    model, QuantizationJob(name, images, training, seed), packed, work, calibration_data=calibration
                )
            _copy(packed, output)
            note(f"{name}: loading {output / packed.name} and evaluating")
            loaded = load_model(str(output / packed.name), device=device)
            scores, columns[name] = _evaluate(work, name, loaded, videos, tests)
            bits = f"{PRESETS[name].weight_bits} / {PRESETS[name].activation_bits or 32}"
            rows.append(ModelRow(name, bits, file_size(packed), **scores))
        photographs = work.file(
            f"photographs-{'-'.join(presets)}.png", lambda path: draw_photographs(presets)[0].save(path, "PNG")
        )
    pictures = [
        _picture(video, {name: masks[i] for name, masks in columns.items()}, output) for i, video in enumerate(tests)
    ]
    pictures.append(_copy(photographs, output, "photographs.png"))
    result = DemoResult(tuple(rows), tuple(pictures), settings)
    with atomic_write(output / "results.json") as temporary:
        temporary.write_text(json.dumps(result.to_dict(), indent=2))
    return result


def _evaluate(
    work: Workspace, name: str, model: SAM2Base, videos: int, tests: Sequence[Video]
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Scores in percent, and the ids that the model finds on the pictured videos, ``[video, frame, height, width]``."""

    def track_all(path: Path) -> None:
        np.savez_compressed(path, masks=np.stack([track_sequence(model, video) for video in tests]))

    def score() -> dict[str, float]:
        return evaluate_model(model, list(generate_split("test", videos, num_frames=FRAMES)), progress=True)

    scores = work.result(f"{name}-scores", score)
    return scores, np.load(work.file(f"{name}-masks.npz", track_all))["masks"]


def _copy(file: Path, folder: Path, name: str | None = None) -> Path:
    copied = folder / (name or file.name)
    with atomic_write(copied) as temporary:
        shutil.copyfile(file, temporary)
    return copied


def _picture(video: Video, masks: Mapping[str, NDArray[np.uint8]], output: Path) -> Path:
    """Three frames of a video, one a row; the true masks first, then each model's."""
    pictures, titles = [], []
    for frame in (FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1):
        for title, ids in {"truth": video.masks, **masks}.items():
            pictures.append(draw_masks(video.frames[frame], ids[frame]))
            titles.append(f"{title}, frame {frame}")
    sheet = side_by_side(pictures, titles, columns=1 + len(masks))
    return save_picture(sheet, output / f"masks-{video.name}.png")
