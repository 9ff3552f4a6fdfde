"""What was found out about this machine's speed by timing, kept from process to process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import QSAM2Error
from ..files import atomic_write
from ..native import kernels_layout
from ..native.processor import processor_model

Times = dict[str, float]
"""What was timed -> milliseconds."""
Run = Callable[[], object]

_ROUNDS, _SECONDS = (3, 30), 0.5
"""Fewest and most, and the time after which no more than the fewest are begun."""
_CHOSEN_BY = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""The environment's variables that keep torch and oneDNN from instructions that the processor has."""


def remembered(
    of: Mapping[str, object], names: Collection[str], measure: Callable[[], Times], folder: Path | None = None
) -> Times:
    """Times that were measured on this machine before, else measured now and kept.

    Args:
        of: What the times are of, JSON-able: what else they depend on than the processor, the versions and the kernels.
        names: Of the times.
        measure: Measures them. It runs again where the file that holds them is absent, damaged or of something else.
        folder: Of the file; by default the one that the compiled kernels are kept in. One that cannot be written costs
            nothing but the time to measure again.

    Returns:
        The times.

    Example:
        >>> remembered({"what": "nothing"}, ["nothing"], lambda: {"nothing": 0.5}, Path("cache"))
        {'nothing': 0.5}
    """
    key = {**_machine(), **of}
    path = _path(key, folder)
    if path is not None and (found := _read(path, key, names)) is not None:
        return found
    times = measure()
    if path is not None:
        with suppress(QSAM2Error, OSError), atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"of": key, "milliseconds": times}, indent=1) + "\n")
    return times


@torch.no_grad()  # not in inference mode: what modules keep from call to call must be of use afterwards
def time_in_turn(runs: Mapping[str, Run]) -> Times:
    """The shortest time of each, in milliseconds; they take turns, so that what slows the machine slows them all.

    Args:
        runs: Name -> what to time. Each runs once before.

    Example:
        >>> time_in_turn({"nothing": lambda: None})["nothing"] < 100
        True
    """
    with torch.autocast("cpu", enabled=False):
        return _time_in_turn(runs)


def _time_in_turn(runs: Mapping[str, Run]) -> Times:
    for run in runs.values():
        run()
    shortest = dict.fromkeys(runs, math.inf)
    end = time.perf_counter() + _SECONDS
    for count in range(_ROUNDS[1]):
        if count >= _ROUNDS[0] and time.perf_counter() > end:
            break
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            shortest[name] = min(shortest[name], 1e3 * (time.perf_counter() - started))
    return {name: round(milliseconds, 4) for name, milliseconds in shortest.items()}


def _machine() -> dict[str, object]:
    return {
        "processor": processor_model(),
        "torch": torch.__version__,
        "kernels": kernels_layout(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        **{name: os.environ[name] for name in _CHOSEN_BY if os.environ.get(name)},
    }


def _path(key: Mapping[str, object], folder: Path | None) -> Path | None:
    """Where times are kept; None where there is no place for them."""
    if folder is None:
        from ..native.build import cache_folder

        try:
            folder = cache_folder()
        except RuntimeError:  # there is no home
            return None
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"times-{name}.json"


def _read(path: Path, key: Mapping[str, object], names: Collection[str]) -> Times | None:
    """The times in a file; None unless it is whole and of that."""
    try:
        found = json.loads(path.read_text())
        times = {name: float(found["milliseconds"][name]) for name in names}
        good = found["of"] == key and all(math.isfinite(t) and t >= 0 for t in times.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return times if good else None
