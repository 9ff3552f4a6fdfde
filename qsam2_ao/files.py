"""Writing files so that an interruption, a full disk or an error never leaves half a file behind."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import QSAM2Error

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` and rename it to ``path`` when the block succeeds.

    Args:
        path: The file to write. Its folder is created where it does not exist.

    Yields:
        A path in the same folder to write to. On an error it is removed and ``path`` is left as it was.

    Raises:
        QSAM2Error: The folder or file cannot be written (permission, full disk), naming the file.

    Example:
        >>> with atomic_write("report.json") as temporary:
        ...     size = temporary.write_text("{}")
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(8)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise QSAM2Error(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield temporary
        os.replace(temporary, target)
    except OSError as error:
        raise QSAM2Error(
            f"cannot write {target}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes are a function of its content: safetensors writes metadata in random order.

    Args:
        tensors: Name -> tensor, on any device.
        path: The file to write. Its folder is created where it does not exist.
        metadata: Texts for the header.

    Raises:
        QSAM2Error: The file cannot be written (permission, full disk), naming it.

    Example:
        >>> save_tensors({"weight": torch.zeros(2)}, "weights.safetensors", {"format": "mine"})
    """
    from safetensors.torch import save

    content = memoryview(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(bytes(content[8:end]))
    header = json.dumps({"__metadata__": dict(sorted(metadata.items())), **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors behind it are aligned
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        file.write(content[end:])


def save_torch(content: object, path: str | os.PathLike[str]) -> None:
    """``torch.save`` that leaves a whole file or none, and says so where the disk is full.

    Args:
        content: What to save.
        path: The file to write. Its folder is created where it does not exist.

    Raises:
        QSAM2Error: The file cannot be written (permission, full disk), naming it.

    Example:
        >>> save_torch({"model": model.state_dict()}, "model.pt")
    """
    import torch

    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # torch's archive writer hides the operating system's error behind one of its own.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
