"""What tests of SAM2's own trainer need: a tiny dataset laid out like MOSE, and a trainer that is stopped."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.training.official import QATTrainer

EMBEDDED = "configs/qsam2/qsam2_embedded.yaml"


def write_dataset(root: Path, videos: int = 1) -> list[str]:
    """Videos of four frames in JPEGImages and Annotations, and the settings of a config that name them."""
    for index in range(videos):
        sequence = generate_sequence("train", index, size=(96, 96), num_frames=4)
        pictures, masks = (root / kind / f"video{index}" for kind in ("JPEGImages", "Annotations"))
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for t in range(4):
            Image.fromarray(sequence.frames[t]).save(pictures / f"{t:05d}.jpg")
            mask = Image.fromarray(sequence.masks[t])
            mask.putpalette(np.repeat(np.arange(256, dtype=np.uint8), 3).tobytes())
            mask.save(masks / f"{t:05d}.png")
    return [f"dataset.img_folder={root}/JPEGImages", f"dataset.gt_folder={root}/Annotations"]


@contextmanager
def own_logging() -> Iterator[None]:
    """SAM2's trainer replaces the root logger and its handlers; here that ends with the block."""
    root, handlers = logging.root, list(logging.root.handlers)
    try:
        yield
    finally:
        logging.root = root
        root.handlers = handlers


class Stopped(QATTrainer):
    """A training that is interrupted behind its first checkpoint."""

    def run_val(self) -> None:
        """Where the trainer is between two epochs."""
        raise KeyboardInterrupt

    def is_intermediate_val_epoch(self, epoch: int) -> bool:
        return True
