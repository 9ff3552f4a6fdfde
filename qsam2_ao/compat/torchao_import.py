"""torchao imported without the warnings that it logs on machines it has no compiled kernels for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Logger -> the start of what it says on import, and what follows nowhere else.
_NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "%s is an Enum subclass",
}


class _Drop(logging.Filter):
    """Drops what one thread logs with a certain start."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start, self._thread = start, threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread or not str(record.msg).startswith(self._start)


@contextmanager
def import_noise_dropped() -> Iterator[None]:
    """Drop what torchao warns of while this thread imports it inside the ``with`` block; other warnings still show."""
    filters = [(logging.getLogger(name), _Drop(start)) for name, start in _NOISE.items()]
    for logger, noise in filters:
        logger.addFilter(noise)
    try:
        yield
    finally:
        for logger, noise in filters:
            logger.removeFilter(noise)
