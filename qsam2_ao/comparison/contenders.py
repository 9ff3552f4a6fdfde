"""The models of a comparison: what they are called, how they are loaded, and how large their files are."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..deploy.targets import TARGETS, get_target
from ..errors import QSAM2Error
from ..export import ExportedSAM2
from ..models.embedded import EMBEDDED_MODELS
from ..reporting.size import file_size
from ..stage import stage_of
from ..workflow.models import is_config, load_runnable

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Contender:
    """A model by name.

    Attributes:
        label: What tables call it; no two are alike.
        model: The name or path that loads it.
        target: How a packed file runs.
    """

    label: str
    model: str
    target: str

    def load(self, device: str) -> SAM2Base | ExportedSAM2:
        """Load it.

        Raises:
            QSAM2Error: It is no model, or does not run on the device.
        """
        return load_runnable(self.model, None, device, self.target)

    def file_bytes(self) -> int:
        """Size of its file, or of all files of its folder."""
        if self.model in EMBEDDED_MODELS:
            return file_size(EMBEDDED_MODELS[self.model].weights)
        path = Path(self.model)
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else file_size(path)


def contenders(names: Sequence[str], least: int = 2) -> list[Contender]:
    """What the models are called, from ``MODEL`` or ``MODEL@TARGET`` each.

    Args:
        names: As people write them; without a target, "auto".
        least: How many there must be.

    Raises:
        QSAM2Error: There are too few, a config has no weights, a target is unknown, or the same is there twice.

    Example:
        >>> [contender.label for contender in contenders(["embedded", "a.safetensors@int8", "a.safetensors@packed"])]
        ['embedded', 'a@int8', 'a@packed']
    """
    if len(names) < least:
        raise QSAM2Error("name at least two models to compare; the first is what the others are compared with")
    split = [_split(name) for name in names]
    if configs := [name for name, _ in split if is_config(name)]:
        raise QSAM2Error(
            f"{configs[0]} is a config without weights; name its checkpoint's file, which tells the config"
        )
    files = [(os.path.realpath(model) if os.path.exists(model) else model, target) for model, target in split]
    if twice := next((name for name, file in zip(split, files, strict=True) if files.count(file) > 1), None):
        raise QSAM2Error(
            f"{twice[0]} is named twice; to compare its targets, write {twice[0]}@int8 and {twice[0]}@packed"
        )
    return [Contender(label, model, target) for label, (model, target) in zip(_labels(split), split, strict=True)]


def _split(name: str) -> tuple[str, str]:
    model, _, target = name.rpartition("@")
    if not Path(name).exists() and (model in EMBEDDED_MODELS or Path(model).is_file()):
        get_target(target)
    return (model, target) if model and target in TARGETS and not Path(name).exists() else (name, "auto")


def _labels(split: Sequence[tuple[str, str]]) -> list[str]:
    """The shortest ends of the paths that tell them apart, with targets where a path comes twice."""
    paths = [Path(model) for model, _ in split]
    names = [path.stem if path.suffix else path.name for path in paths]
    for above in range(1, 9):
        owners: dict[str, set[Path]] = defaultdict(set)
        for name, path in zip(names, paths, strict=True):
            owners[name].add(Path(os.path.realpath(path)))
        names = [
            "/".join(path.absolute().parts[-1 - above :]) if len(owners[name]) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    return [
        f"{name}@{target}" if names.count(name) > 1 else name for name, (_, target) in zip(names, split, strict=True)
    ]


def kind_of(model: SAM2Base | ExportedSAM2) -> str:
    """What a loaded model is, in a word or two: "float", "w4a8", "exported to onnx"."""
    if isinstance(model, ExportedSAM2):
        return f"exported ({model.settings.runtime})"
    stage = stage_of(model)
    return str((stage.info or {}).get("qconfig") or "quantized") if stage.layers else "float"
