"""What is timed: a model at a size on a number of threads, and the files that its methods are loaded from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base

from ...checkpoint import save_qsam2
from ...convert import convert_qsam2
from ...data.procedural import generate_sequence
from ...files import atomic_write
from ...models.official import build_official


@dataclass(frozen=True)
class InferenceWorkload:
    """One process of measurements.

    Attributes:
        model: A short official name. Weights are random: speed does not depend on them.
        size: Side of the input in pixels.
        threads: Threads of every library.
        files: Where packed files and the exports of other runtimes are kept.
    """

    model: str
    size: int
    threads: int
    files: Path

    @property
    def name(self) -> str:
        """As results on disk are called."""
        return f"{self.model}-{self.size}px-{self.threads}-threads"

    def build(self) -> SAM2Base:
        """The float model; the same weights each time."""
        torch.manual_seed(0)
        model = build_official(self.model, image_size=self.size)
        assert isinstance(model, SAM2Base)
        return model.eval()

    def image(self) -> np.ndarray:
        """A picture of the input's size, uint8 ``[size, size, 3]``."""
        return _picture(self.size)

    def checkpoint(self) -> Path:
        """The float model in the official format, in bfloat16: what a packed file is compared with."""
        path = self.files / f"{self.model}-bf16.pt"
        if not path.exists():
            state = {name: value.bfloat16() for name, value in self.build().state_dict().items()}
            with atomic_write(path) as temporary:
                torch.save({"model": state}, temporary)
        return path

    def packed(self, preset: str) -> Path:
        """The file of a preset, converted without VRC, which does not change the speed."""
        path = self.files / f"{self.model}-{self.size}px-{preset}.safetensors"
        if not path.exists():
            quantized = convert_qsam2(self.build(), preset, [self.image()], vrc=None, progress=False)
            save_qsam2(quantized, path)  # type: ignore[arg-type]
        return path


def _picture(size: int) -> np.ndarray:
    frame = generate_sequence("test", 0, num_frames=1).frames[0]
    return np.array(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
