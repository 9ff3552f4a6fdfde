"""Memory that the process has freed and the C library keeps."""

from __future__ import annotations

import ctypes
import sys

#: So many bytes of codes are unpacked between two calls of :func:`trim_heap`, which takes a millisecond or a few.
TRIM_EVERY = 4 << 20


def trim_heap() -> None:
    """Let glibc give its free pages back to the system; elsewhere nothing happens.

    Weights that are converted one by one leave holes between what stays, and glibc keeps these: more than the model
    takes itself.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
