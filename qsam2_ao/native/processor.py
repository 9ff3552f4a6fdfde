"""Which processor this is."""

from __future__ import annotations

import functools
import platform
from pathlib import Path


def processor() -> str:
    """The processor's name, as its maker calls it.

    Example:
        >>> processor() != ""
        True
    """
    return _cpuinfo().get("model name") or platform.processor() or "unknown"


def processor_model() -> str:
    """The name with the family and the model behind it where the system tells them: makers use names twice.

    Example:
        >>> processor_model().startswith(processor())
        True
    """
    found = _cpuinfo()
    numbers = [f"{key.removeprefix('cpu ')} {found[key]}" for key in ("cpu family", "model") if key in found]
    return ", ".join((processor(), *numbers))


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """What Linux says of the first core; empty on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
