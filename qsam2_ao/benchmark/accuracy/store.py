"""Finished experiments, one JSON line each: what a later run goes on from and the report is made of."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import CheckpointError, QSAM2Error

ExperimentResult = dict[str, Any]


def experiment_key(experiment: ExperimentResult) -> tuple[str, str, str, int]:
    """What tells experiments apart: model, method, setting, seed."""
    return experiment["model"], experiment["method"], experiment["setting"], experiment["seed"]


class ExperimentStore:
    """An append-only file of results; several processes may write to it at once.

    Args:
        path: The ``.jsonl`` file; it and its folder are created by the first result.

    Example:
        >>> store = ExperimentStore(Path("accuracy_cells.jsonl"))
        >>> store.append({"kind": "cell", "model": "plain", "method": "LSQ", "setting": "W2A4", "seed": 0})
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[ExperimentResult]:
        """Every result, in the order in which they were finished; a last line cut off by a crash is dropped.

        Raises:
            CheckpointError: Another line is damaged.
        """
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")
        results = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                results.append(json.loads(line))
            except ValueError as error:
                if number == len(lines):
                    continue
                raise CheckpointError(f"{self.path}, line {number} is damaged ({error}); delete that line") from error
        return results

    def append(self, result: ExperimentResult) -> None:
        """Add a result.

        Raises:
            QSAM2Error: The file cannot be written, naming it.
        """
        line = json.dumps(result, separators=(",", ":"), allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path) as file:
                file.seek(0)
                content = file.read()
                last = content[content.rfind(b"\n") + 1 :]
                if _is_json(last):
                    line = "\n" + line
                else:  # a crash cut it off
                    file.truncate(len(content) - len(last))
                file.write(line.encode())
                file.flush()
        except OSError as error:
            raise QSAM2Error(f"cannot write {self.path}: {error.strerror or error}") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    with open(path, "ab+") as file:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
