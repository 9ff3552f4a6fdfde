"""The state of everything random in one training process, as plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def random_state(generator: np.random.Generator, device: torch.device) -> dict[str, Any]:
    """What Python, numpy, torch and the model draw next.

    Args:
        generator: The model's own, ``SAM2Train.rng``.
        device: The device that trains; its generator is included where it is a GPU.

    Returns:
        Plain values and tensors.
    """
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # type: ignore[misc]
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), gauss],
        "torch": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "model": generator.bit_generator.state,
    }


def set_random_state(state: dict[str, Any], generator: np.random.Generator, device: torch.device) -> None:
    """Let everything draw what it would have drawn after :func:`random_state`.

    Args:
        state: Its result.
        generator: The model's own.
        device: The device that trains.
    """
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["device"] is not None:
        torch.cuda.set_rng_state(state["device"], device)
    generator.bit_generator.state = state["model"]
