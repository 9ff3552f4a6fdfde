"""Imports where no folder for temporary files can be written, as in a container with a read-only file system.

torch's compiler, which torchao imports, makes the folder of its cache while it is imported, and portalocker, which sam2
imports, asks for a folder for a default. Neither writes anything then.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def no_folder_needed() -> Iterator[None]:
    """Let modules ask for a folder for temporary files inside the ``with`` block where there is none.

    What really writes there, such as compiling, is an error afterwards as it was, which names the folders tried.

    Example:
        >>> with no_folder_needed():  # doctest: +SKIP
        ...     import torch._dynamo.package
    """
    if _can_be_written():
        yield
        return
    folder = str(Path(__file__).parent)  # one that exists
    mine = _CACHE not in os.environ
    if mine:
        os.environ[_CACHE] = folder
    tempfile.tempdir = folder
    try:
        yield
    finally:
        tempfile.tempdir = None
        if mine:
            os.environ.pop(_CACHE, None)


def _can_be_written() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        return False
    return True
