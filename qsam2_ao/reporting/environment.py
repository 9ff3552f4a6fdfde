"""The machine and the versions that a figure, or a bug report, depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress

import torch

from ..native.processor import processor_model

PACKAGES = ("qsam2_ao", "torch", "torchvision", "torchao", "sam2", "numpy", "vos-benchmark")


def environment(*packages: str) -> dict[str, str]:
    """Processor, cores, operating system, Python and the versions of what the figures depend on.

    Args:
        *packages: Others than :data:`PACKAGES`. What is not installed is not listed.

    Example:
        >>> "torch" in environment()
        True
    """
    versions = {}
    for name in (*PACKAGES, *packages):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name).partition("+")[0]
    return {
        "processor": processor_model(),
        "cores": str(usable_cores()),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
