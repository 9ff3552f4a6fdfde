"""Devices by what people write, and what is said about those that are not there."""

from __future__ import annotations

import torch

from .errors import QSAM2Error
from .spelling import resembling

#: What people write for a device of another name.
_MEANT = {"gpu": "cuda", "nvidia": "cuda", "mps": "cpu", "metal": "cpu"}


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name, if this machine can compute on it.

    Args:
        device: A name ("cpu", "cuda", "cuda:1"), or a device.

    Returns:
        The device.

    Raises:
        QSAM2Error: There is no such device, or not here; the message names one that there is.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise QSAM2Error(f"there is no device {device!r}; {_advice(str(device))}") from error
    if found.type == "meta":
        raise QSAM2Error("the device meta computes nothing; use cpu, or cuda where there is a GPU")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        here = f"this machine has {count}, cuda:0 is the first" if count else "this machine, or this torch, has no GPU"
        raise QSAM2Error(f"the device {str(found)!r} cannot be used: {here}; {_advice('cuda:0' if count else '')}")
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise QSAM2Error(f"the device {str(found)!r} cannot be used here ({reason}); {_advice(found.type)}") from error
    return found


def own_gpu(local: int) -> str:
    """The GPU of a process: that of its number, or the only one that its launcher shows it.

    Args:
        local: The number of the process on its machine.

    Example:
        >>> own_gpu(0)
        'cuda:0'
    """
    return f"cuda:{0 if torch.cuda.device_count() == 1 else local}"


def _advice(name: str) -> str:
    here = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    kind, _, index = name.strip().lower().partition(":")
    meant = _MEANT.get(kind) or next(iter(resembling(kind, ["cpu", "cuda"], count=1, cutoff=0.5)), "cpu")
    if meant not in here:
        return f"an NVIDIA GPU is called {meant}, and there is none here: use cpu"
    return f"did you mean {meant}:{index}?" if meant == "cuda" and index.isdigit() else f"use {meant}"
