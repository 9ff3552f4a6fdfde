"""What the tests of processes have in common: a mask that tells models apart, and a child that computes it.

Imported by spawned processes, so it imports qsam2_ao first, as a program's main module does.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qsam2_ao  # noqa: F401 - before sam2's predictors, which may need its repairs


def resident() -> int:
    """Bytes of memory that this process has; Linux alone tells."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def picture(number: int, size: tuple[int, int] = (96, 96)) -> NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)


def logits(model: Any, number: int = 0, size: tuple[int, int] = (96, 96)) -> NDArray[np.float32]:
    """The mask of a click in a picture, by a predictor of its own."""
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(model)
    predictor.set_image(picture(number, size))
    click = np.array([[size[1] // 2, size[0] // 3]])
    return np.asarray(predictor.predict(click, np.array([1]), multimask_output=False, return_logits=True)[0])


def work(models: Any, results: Any) -> None:
    """What a process does with models that it was given."""
    results.put([logits(model) for model in models])
    results.close()
    results.join_thread()  # while the models, whose memory is shared, are still there


_models: dict[str, Any] = {}
"""Of a process in a pool, by target."""


def load(path: str, targets: list[str]) -> None:
    """What a process in a pool does first."""
    from qsam2_ao import load_qsam2

    for target in targets:
        _models[target] = load_qsam2(path, target=target)


def serve(target: str, number: int) -> NDArray[np.float32]:
    """What a process in a pool does with each picture."""
    return logits(_models[target], number)
