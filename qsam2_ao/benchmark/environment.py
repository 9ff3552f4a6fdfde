"""Where and with what a benchmark ran, to stand beside its figures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

PACKAGES = ("qsam2_ao", "torch", "torchvision", "torchao", "sam2", "numpy", "vos-benchmark")


def environment(*packages: str) -> dict[str, str]:
    """Processor, cores, operating system, Python and the versions of what the figures depend on.

    Args:
        *packages: Others that are listed where they are installed.

    Example:
        >>> "torch" in environment()
        True
    """
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in PACKAGES}
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
