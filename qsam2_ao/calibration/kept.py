"""What is done of a calibration, in a file that an interrupted one goes on from with the same bits."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import load_torch, save_torch
from .report import LayerReport

_FORMAT = "qsam2_ao.calibration/2"


@dataclass
class Pass:
    """A pass over the images.

    Attributes:
        done: Batches that an interrupted run has done already.
        random: State of the prompts' generator behind them; None at the start.
        after: Called after each batch with the number of batches done and that generator's state.
    """

    done: int = 0
    random: Tensor | None = None
    after: Callable[[int, Tensor | None], None] = lambda done, random: None


def content_hash(model: nn.Module) -> str:
    """What tells a model's weights and buffers from others.

    Args:
        model: Any module, on any device.

    Returns:
        A SHA-256 of the names and bytes of its state.

    Example:
        >>> len(content_hash(network))
        64
    """
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


class KeptCalibration:
    """The file of a calibration: solved layers, and the pass over the images that is under way.

    Args:
        path: The file. It is continued from where it exists.
        settings: What the calibration depends on, as plain values.
        every: Seconds between two savings, between batches or layers.

    Raises:
        CheckpointError: The file is damaged, or of another calibration.

    Example:
        >>> kept = KeptCalibration("calibration.pt", {"seed": 0})
        >>> kept.over("input ranges", dict, print).done
        0
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any], every: float = 60.0) -> None:
        self._path, self._every, self._saved_at = Path(path), every, time.monotonic()
        self._content: dict[str, Any] = {
            "format": _FORMAT, "settings": dict(settings), "layers": {}, "report": [], "pass": None
        }  # fmt: skip
        self._state: Callable[[], Any] | None = None
        if self._path.exists():
            remedy = "; delete it to calibrate again"
            content = load_torch(self._path, "cannot be continued from", remedy)
            if not isinstance(content, dict) or content.get("format") != _FORMAT:
                raise CheckpointError(f"{self._path} is no interrupted calibration{remedy}")
            if content["settings"] != self._content["settings"]:
                raise CheckpointError(f"{self._path} is of a calibration with other settings{remedy}")
            self._content = content

    def over(self, name: str, state: Callable[[], Any], load: Callable[[Any], None]) -> Pass:
        """Begin a pass over the images, or go on with it.

        Args:
            name: What tells it from others.
            state: What it has gathered, as plain values and tensors.
            load: Takes that back.
        """
        found = self._content["pass"]
        if found is None or found["name"] != name:
            found = {"name": name, "done": 0, "random": None, "state": None}
        else:
            load(found["state"])
        self._content["pass"] = {**found, "state": None}
        self._state = state

        def after(done: int, random: Tensor | None) -> None:
            self._content["pass"] |= {"done": done, "random": random}
            self._save_if_due()

        return Pass(found["done"], found["random"], after)

    def solved(self, name: str, layer: nn.Module) -> bool:
        """Whether an interrupted run has settled a layer, which then takes its state."""
        state = self._content["layers"].get(name)
        if state is None:
            return False
        layer.load_state_dict(state)
        return True

    def solve(self, name: str, layer: nn.Module, report: list[LayerReport]) -> None:
        """Keep a layer that is settled, and the report so far."""
        self._content["layers"][name] = layer.state_dict()
        self._content["report"] = [asdict(entry) for entry in report]
        self._save_if_due()

    @property
    def report(self) -> list[LayerReport]:
        """The entries of the layers that are settled."""
        return [LayerReport(**{**entry, "shape": tuple(entry["shape"])}) for entry in self._content["report"]]

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved_at < self._every:
            return
        under_way = self._content["pass"]
        if under_way is not None and self._state is not None:
            under_way = {**under_way, "state": self._state()}
        save_torch({**self._content, "pass": under_way}, self._path)
        self._saved_at = time.monotonic()
