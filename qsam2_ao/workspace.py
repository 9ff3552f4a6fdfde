"""Finished steps on disk, so that an interrupted command goes on where it stopped when it is run again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from .errors import CheckpointError, QSAM2Error
from .files import atomic_write

T = TypeVar("T")


class Workspace:
    """The results of the steps of one run, in a folder that is named after a hash of the run's settings.

    The same settings find the same folder again, others get another one. Files are written whole or not.

    Args:
        root: Where such folders are.
        settings: Everything that the results depend on, as JSON-able values.
        others: Further places where an earlier run may have left such a folder, which is then gone on with.

    Attributes:
        folder: This run's folder.

    Raises:
        QSAM2Error: The folder cannot be written.

    Example:
        >>> work = Workspace(Path("outputs/work"), {"steps": 100})
        >>> work.result("score", lambda: 81.5)  # computed once; what is kept comes back
        81.5
    """

    def __init__(self, root: Path, settings: Mapping[str, Any], others: Iterable[Path] = ()) -> None:
        text = json.dumps(settings, sort_keys=True, indent=2)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder = next((place / name for place in (root, *others) if (place / name).is_dir()), root / name)
        with atomic_write(self.folder / "settings.json") as temporary:
            temporary.write_text(text)

    def file(self, name: str, write: Callable[[Path], object]) -> Path:
        """The file of a step; ``write`` makes it, unless an earlier run did.

        Args:
            name: The file's name.
            write: Called with the path to write to.

        Returns:
            The file's path.
        """
        path = self.folder / name
        if not path.exists():
            with atomic_write(path) as temporary:
                write(temporary)
        return path

    def result(self, name: str, compute: Callable[[], T]) -> T:
        """The JSON-able result of a step; ``compute`` makes it, unless an earlier run did.

        Args:
            name: The step's name.
            compute: Called without arguments.

        Returns:
            The result as JSON gives it back (tuples become lists, keys strings), computed now or before.

        Raises:
            CheckpointError: The stored result is damaged.
        """
        path = self.folder / f"{name}.json"
        if not path.exists():
            # Before the file is begun: an error of the step is none of the disk.
            content = json.dumps(compute(), indent=2)
            self.file(path.name, lambda to: to.write_text(content))
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it and run again") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the folder inside the block. A lock ends with its process, however that ends.

        Raises:
            QSAM2Error: Another run is at work in the folder.

        Example:
            >>> with Workspace(Path("outputs/work"), {"steps": 100}).locked():
            ...     pass
        """
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise QSAM2Error(
                f"another run with the same settings is at work in {self.folder}; wait for it, or stop it to go on here"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def untouched(self) -> bool:
        """Whether no step has left anything in the folder."""
        return all(path.name in ("lock", "settings.json") for path in self.folder.iterdir())

    def discard(self) -> None:
        """Remove this run's folder, and the root if nothing else is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def fingerprint(
    path: str | os.PathLike[str] | None, without: Iterable[str | os.PathLike[str] | None] = ()
) -> list[Any] | None:
    """What tells a file or folder from a changed one: names, sizes and times, not contents.

    Args:
        path: A file, a folder, something else (a name, which stands for itself), or None.
        without: Files and folders inside of ``path`` that do not count, such as those that are being written.

    Returns:
        JSON-able values.
    """
    if path is None:
        return None
    place = Path(path)
    if place.is_file():
        stat = place.stat()
        return [str(place.resolve()), stat.st_size, stat.st_mtime_ns]
    if place.is_dir():
        left_out = {os.path.realpath(other) for other in without if other is not None} - {os.path.realpath(place)}
        found = _files(place, left_out)
        told = sorted((os.path.relpath(file, place), stat.st_size, stat.st_mtime_ns) for file, stat in found)
        return [str(place.resolve()), len(told), hashlib.sha256(json.dumps(told).encode()).hexdigest()]
    return [str(path)]


def _files(folder: Path, left_out: Set[str]) -> Iterator[tuple[str, os.stat_result]]:
    """The files of a folder and those below it, also of folders that links lead to, each folder once."""
    seen = set(left_out)
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = os.path.join(place, name)
            if os.path.join(real, name) not in left_out and os.path.isfile(path):
                yield path, os.stat(path)


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages, as work folders and reports name them.

    Args:
        packages: Their names.

    Example:
        >>> list(versions("torch"))
        ['torch']
    """
    return {name: importlib.metadata.version(name) for name in packages}
