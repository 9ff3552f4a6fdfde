"""What is in a packed file, or in a float model, layer by layer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import read_header
from ..errors import QSAM2Error
from ..reporting.coverage import CoverageReport, coverage_report
from ..reporting.size import ModelSize, file_size, model_size
from ..reporting.speed import layer_times
from ..stage import stage_of
from .models import load_model


@dataclass(frozen=True)
class ModelFacts:
    """What is in a model.

    Attributes:
        model: The name it was asked for by.
        class_name: Full name of its class.
        image_size: Side of its input in pixels.
        file_bytes: Of its file; None for the embedded model in float, and for a folder.
        info: What a packed file says about its making; None for a float model.
        size: Bytes of its tensors.
        coverage: Every layer, with its bits.
    """

    model: str
    class_name: str
    image_size: int
    file_bytes: int | None
    info: dict[str, Any] | None
    size: ModelSize
    coverage: CoverageReport

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "model": self.model,
            "class": self.class_name,
            "image_size": self.image_size,
            "file_bytes": self.file_bytes,
            "info": self.info,
            "size": self.size.to_dict(),
            "coverage": self.coverage.to_dict(),
        }


def inspect_model(
    model: str, checkpoint: str | os.PathLike[str] | None = None, *, time: bool = False, target: str = "auto"
) -> ModelFacts:
    """Say what is in a model that has a name.

    Args:
        model: "embedded", a packed file, or an official config with its checkpoint.
        checkpoint: The ``.pt`` file of an official config.
        time: Time each layer of a packed file.
        target: How the packed file runs while it is timed.

    Returns:
        The facts.

    Raises:
        QSAM2Error: There is no such model, or a float model is to be timed.

    Example:
        >>> inspect_model("tiny-w4a8.safetensors").size.compression > 3
        True
    """
    loaded = load_model(model, checkpoint)
    packed = bool(stage_of(loaded).layers)
    file = Path(model) if Path(model).is_file() and checkpoint is None else checkpoint
    size = model_size(loaded)
    coverage = coverage_report(loaded)
    if time:
        if not packed:
            raise QSAM2Error(f"--time is for packed files, and {model} is a float model")
        lowered = load_model(model, target=target)
        coverage = coverage_report(lowered, layer_times(lowered))
    return ModelFacts(
        model,
        f"{type(loaded).__module__}.{type(loaded).__qualname__}",
        loaded.image_size,
        None if file is None or Path(file).is_dir() else file_size(file),
        read_header(model).info if packed else None,
        size,
        coverage,
    )
