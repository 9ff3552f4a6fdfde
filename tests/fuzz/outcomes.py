"""Readers that behave in every way a reader can, to test the harness by; a process of its own, for it forks.

python -m fuzz.outcomes NAME SECONDS BYTES      # prints [read, refused, {case: fault}] of three cases
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qsam2_ao.errors import DataError

from . import harness
from .readers import Reader


def _refuse(path: Path) -> None:
    raise DataError(f"{path} is refused")


def _say_nothing(path: Path) -> None:
    raise DataError("")


def _fail(path: Path) -> None:
    raise KeyError("model")


def _hang(path: Path) -> None:
    while True:
        pass


READS: dict[str, Callable[[Path], object]] = {
    "reads": Path.read_bytes,
    "refuses": _refuse,
    "says nothing": _say_nothing,
    "fails": _fail,
    "crashes": lambda path: os.abort(),
    "hangs": _hang,
    "eats": lambda path: bytearray(1 << 30),
}


def main() -> None:
    """Run one of them."""
    name, seconds, size = sys.argv[1:]
    harness.SECONDS, harness.BYTES = int(seconds), int(size)
    with tempfile.TemporaryDirectory() as folder:
        seed = Path(folder) / "seed.txt"
        seed.write_text("some words 12 and 5\n" * 10)
        report = harness.run(Reader("test", lambda folder: [], READS[name]), [seed], [seed], range(3))
    print(json.dumps([report.read, report.refused, report.faults]))


if __name__ == "__main__":
    main()
