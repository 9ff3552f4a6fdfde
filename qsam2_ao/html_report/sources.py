"""What there is to report in the files and folders that a user names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..comparison import Comparison, read_comparison
from ..comparison.saving import RESULTS, SHEET
from ..errors import DataError
from ..models.weights import holds_float_weights

DEMO, SETTINGS = "results.json", "settings.json"
_DEEPEST = 4
"""Folders within folders that are looked into."""
_LARGEST = 64 * 2**20
"""Bytes of a JSON file that is read."""


@dataclass
class Sources:
    """What was found.

    Attributes:
        packed: Packed files.
        comparisons: Results of ``qsam2 compare`` with their folders.
        demos: Results of ``qsam2 demo`` with their folders.
        runs: Settings of runs that are not finished, or kept their stages, with their folders.
        logs: Lines of training logs, with the file's path.
        evaluations: Results of ``qsam2 evaluate --json``, with the file's path.
        sensitivities: Results of ``qsam2 sensitivity``, with the file's path.
    """

    packed: list[Path] = field(default_factory=list)
    comparisons: list[tuple[Path, Comparison]] = field(default_factory=list)
    demos: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    runs: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    logs: list[tuple[Path, list[dict[str, float]]]] = field(default_factory=list)
    evaluations: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)
    sensitivities: list[tuple[Path, Mapping[str, Any]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return any(vars(self).values())


def find_sources(paths: Sequence[str | os.PathLike[str]]) -> Sources:
    """Look through files and folders.

    Args:
        paths: Packed files, JSON files of results, logs (``.jsonl``), and folders with such files.

    Returns:
        What was found.

    Raises:
        DataError: A path is absent, a file that is named is of no known kind, or nothing was found.

    Example:
        >>> find_sources(["outputs/demo"]).packed  # doctest: +SKIP
        [PosixPath('outputs/demo/w2a8.safetensors'), PosixPath('outputs/demo/w4a8.safetensors')]
    """
    found = Sources()
    for name in paths:
        path = Path(name)
        if path.is_dir():
            _look_into(path, found, 0)
        elif not path.is_file():
            raise DataError(f"{path}: no such file or folder")
        elif not _take(path, found):
            raise DataError(
                f"{path} is nothing to report on; name a packed file, a result that --json printed, a .jsonl log, or a "
                "folder of a run"
            )
    if not found:
        raise DataError(f"there is nothing to report on in {', '.join(map(str, paths))}")
    return found


def _look_into(folder: Path, found: Sources, depth: int) -> None:
    entries = sorted(folder.iterdir())
    demos = len(found.demos)
    for path in (each for each in entries if each.is_file()):
        _take(path, found)
    own = ["work"] if len(found.demos) > demos else []  # the demo's stages, which are in its results
    for path in (each for each in entries if each.is_dir() and each.name not in own):
        if not path.is_symlink() and not path.name.startswith(".") and depth < _DEEPEST:
            _look_into(path, found, depth + 1)


def _take(path: Path, found: Sources) -> bool:
    """Whether it was of use."""
    if path.suffix == ".safetensors":
        packed = not holds_float_weights(path)
        found.packed += [path] * packed
        return packed
    if path.suffix == ".jsonl":
        rows = _lines(path)
        if rows:
            found.logs.append((path, rows))
        return bool(rows)
    if path.suffix != ".json" or path.stat().st_size > _LARGEST:
        return False
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(content, Mapping):
        return False
    if content.get("kind") == "comparison" or path.name == RESULTS:
        found.comparisons.append((path.parent, read_comparison(path)))
    elif path.name == DEMO and _are_rows(content.get("rows"), "name") and "pictures" in content:
        found.demos.append((path.parent, content))
    elif _are_rows(content.get("records"), "layer", "bits", "loss") and content.get("metric"):
        found.sensitivities.append((path, content))
    elif path.name == SETTINGS and path.parent.parent.suffix == ".work":
        found.runs.append((path.parent, content))
    elif scores_of(content):
        found.evaluations.append((path, content))
    else:
        return False
    return True


def _are_rows(value: object, *keys: str) -> bool:
    """Whether it is a list, and not an empty one, of mappings that have the keys."""
    return (
        isinstance(value, list) and bool(value) and all(isinstance(r, Mapping) and r.keys() >= {*keys} for r in value)
    )


def _lines(path: Path) -> list[dict[str, float]]:
    """The lines of a log that have a step, and of them what is a number."""
    rows = []
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError):
        return []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("step")):
            rows.append({key: float(value) for key, value in row.items() if _is_number(value)})
    return rows


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def scores_of(content: Mapping[str, Any]) -> dict[str, float]:
    """The scores of an evaluation, in percent."""
    return {name: float(content[name]) for name in ("jf", "j", "f", "miou") if _is_number(content.get(name))}


__all__ = ["SHEET", "Sources", "find_sources", "scores_of"]
