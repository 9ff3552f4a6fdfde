"""The whole files that are damaged."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .readers import READERS


def write_seeds(folder: Path, names: Iterable[str]) -> tuple[dict[str, list[Path]], list[Path]]:
    """Write the whole files of some readers.

    Args:
        folder: Where to write.
        names: Of the readers.

    Returns:
        Name -> files and folders; and files of several kinds, to swap for them.
    """
    seeds: dict[str, list[Path]] = {}
    for name in dict.fromkeys([*names, "picture", "bits"]):
        (folder / name).mkdir(parents=True)
        seeds[name] = READERS[name].write(folder / name)
    others = [path for paths in seeds.values() for path in paths if path.is_file()]
    return seeds, sorted(others, key=lambda path: path.name)
