"""The ``qsam2`` block of a training config: how SAM2's trainer gets a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ...calibration.rounding import ROUNDINGS
from ...calibration.vrc import is_damping
from ...errors import QConfigError
from ...recipe import PRESETS, QConfigLike, preset_qconfig
from ...spelling import unknown_name

_BLOCK = "trainer.model.qsam2"
_REASONS = {
    "checkpoint": "the float weights must be there before they are calibrated, so model_weight_initializer comes too "
    "late: name the checkpoint here, or null to calibrate the weights that the model is built with",
    "calibration": "name a folder of images, such as ${dataset.img_folder}, or null to leave the weights as they are "
    "and start the ranges of inputs from the first training batch",
}


@dataclass(frozen=True)
class Options:
    """How the model is quantized, calibrated and found again.

    Attributes:
        checkpoint: The float weights: a checkpoint of the config's model, "embedded" for the weights of the embedded
            model, or None for those that the model is built with.
        calibration: A folder of images, or None.
        preset: A preset's name; in its place ``regions``.
        regions: Region -> preset, or None to keep that region in float.
        first_last_bits: Bits of the first and last layers instead of the preset's.
        images: Calibrate on at most so many images.
        vrc: As for ``prepare_qsam2``.
        rounding: As for ``prepare_qsam2``.
        seed: Of the choice of images and prompts.
        folder: Where the trainer keeps its checkpoints, ``${trainer.checkpoint.save_dir}``: a run that is started again
            finds its calibration there. None calibrates at each start.
        resume_from: The trainer's ``checkpoint.resume_from``: another run's checkpoint to go on from.
        device: Where to calibrate, ``${trainer.accelerator}``.
    """

    checkpoint: str | None
    calibration: str | None
    preset: str | None = None
    regions: Mapping[str, str | None] | None = None
    first_last_bits: int | None = None
    images: int = 50
    vrc: str | float | None = "auto"
    rounding: str = "nearest"
    seed: int = 0
    folder: str | None = None
    resume_from: str | None = None
    device: str = "cpu"

    @classmethod
    def read(cls, block: object) -> Options:
        """Check a block.

        Args:
            block: What the config has there, as plain values.

        Raises:
            QConfigError: A key is missing or unknown, or its value cannot be used; named with what to write.

        Example:
            >>> Options.read({"preset": "w4a8", "checkpoint": None, "calibration": "photos/"}).images
            50
        """
        if not isinstance(block, Mapping):
            raise QConfigError(f"{_BLOCK} must be a block of settings, not {block!r}")
        known = {field.name: field for field in fields(cls)}
        for key in block:
            if key not in known:
                raise QConfigError(f"{_BLOCK}.{key} is no setting; they are {', '.join(known)}")
        for key, field in known.items():
            if field.default is MISSING and key not in block:
                raise QConfigError(f"{_BLOCK}.{key} is missing: {_REASONS[key]}")
        options = cls(**block)
        options._check()
        return options

    def _check(self) -> None:
        if (self.preset is None) == (self.regions is None):
            raise QConfigError(f"{_BLOCK} needs either preset, one of {', '.join(PRESETS)}, or regions")
        if self.preset is not None and self.preset not in PRESETS:
            raise QConfigError(f"{_BLOCK}.preset: {unknown_name('preset', self.preset, PRESETS)}")
        if self.first_last_bits is not None and self.preset is None:
            raise QConfigError(f"{_BLOCK}.first_last_bits belongs to a preset; regions name presets of their own")
        if self.rounding not in ROUNDINGS:
            raise QConfigError(f"{_BLOCK}.rounding: {unknown_name('rounding', self.rounding, ROUNDINGS)}")
        if self.vrc is not None and not is_damping(self.vrc):
            raise QConfigError(f'{_BLOCK}.vrc must be "auto", a number that is not negative, or null, got {self.vrc!r}')
        if not isinstance(self.images, int) or self.images < 1:
            raise QConfigError(f"{_BLOCK}.images must be a positive number of images, got {self.images!r}")
        for key in ("calibration", "checkpoint", "folder", "resume_from"):
            if not isinstance(getattr(self, key), str | None):
                raise QConfigError(f"{_BLOCK}.{key} must be a path or null, got {getattr(self, key)!r}")

    @property
    def qconfig(self) -> QConfigLike:
        """What ``prepare_qsam2`` takes."""
        if self.regions is not None:
            return dict(self.regions)
        assert self.preset is not None
        if self.first_last_bits is None:
            return self.preset
        return preset_qconfig(self.preset, first_last_bits=self.first_last_bits)

    @property
    def recipe(self) -> dict[str, Any]:
        """What every layer gets, as plain values: two runs with the same have models with the same quantizers."""
        if self.regions is not None:
            return {"regions": dict(self.regions)}
        return {"preset": self.preset, "first_last_bits": self.first_last_bits}

    @property
    def settings(self) -> dict[str, Any]:
        """All that a calibration depends on but the model, as plain values."""
        stat = Path(self.checkpoint).stat() if self.checkpoint and Path(self.checkpoint).is_file() else None
        return {
            **self.recipe,
            "checkpoint": [self.checkpoint, *([stat.st_size, stat.st_mtime_ns] if stat else [])],
            "calibration": self.calibration,
            "images": self.images,
            "vrc": self.vrc,
            "rounding": self.rounding,
            "seed": self.seed,
        }
