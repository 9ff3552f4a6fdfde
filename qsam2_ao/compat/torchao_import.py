"""torchao imported without the warnings that it logs on machines it has no compiled kernels for."""

from __future__ import annotations

import logging

# Logger -> the start of what it says on import, and what follows nowhere else.
_NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "%s is an Enum subclass",
}


def _filter(start: str) -> logging.Filter:
    class Drop(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return not str(record.msg).startswith(start)

    return Drop()


def import_torchao() -> None:
    """Import torchao; its missing kernels are of no concern here, and other warnings still show.

    Example:
        >>> import_torchao()
    """
    filters = [(logging.getLogger(name), _filter(start)) for name, start in _NOISE.items()]
    for logger, noise in filters:
        logger.addFilter(noise)
    try:
        import torchao.quantization
        import torchao.utils  # noqa: F401
    finally:
        for logger, noise in filters:
            logger.removeFilter(noise)
