"""Reading a safetensors file into memory of the process's own, so that nothing depends on the file afterwards.

Files that this package writes have checksums, which safetensors has not: a bit that a disk has lost would be another
mask.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: What safetensors calls torch's dtypes.
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
#: Name of the text in the header with CRC-32s: of its rest, then of each tensor's bytes in order of names.
CHECKSUMS = "crc32"


def checksums_text(values: Iterable[int]) -> str:
    """Checksums as the header has them, eight hexadecimal digits each: names would take 70 kB of a small file."""
    return "".join(f"{value:08x}" for value in values)


def header_checksum(metadata: Mapping[str, str], entries: Mapping[str, Any]) -> int:
    """CRC-32 of what a header says, in whatever order.

    Args:
        metadata: Its texts, without :data:`CHECKSUMS`.
        entries: Tensor -> its dtype, shape and place.
    """
    return zlib.crc32(json.dumps([dict(metadata), dict(entries)], sort_keys=True).encode())


class TensorFile:
    """An open safetensors file whose tensors are read, not mapped.

    safetensors maps a file: its tensors change with it, and the process dies where it is cut off. Here each tensor has
    memory of its own, which costs a copy of the file's bytes. A file that changes while it is read is refused.

    Args:
        path: The file.

    Attributes:
        metadata: The texts of the header, without checksums.

    Raises:
        CheckpointError: There is no such file, it is no whole safetensors file, it is damaged, or (when the block ends)
            it changed.

    Example:
        >>> with TensorFile("weights.safetensors") as file:  # doctest: +SKIP
        ...     weight = file.tensor("weight")
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        if not Path(path).is_file():
            raise CheckpointError(f"{path}: {'is a folder, not a file' if Path(path).is_dir() else 'no such file'}")
        try:
            self._stamp = _stamp(os.stat(path))
            self.metadata = _checked_metadata(path)
            self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - closed by __exit__
            length = int.from_bytes(self._file.read(8), "little")
            entries = json.loads(self._file.read(length))
        except CheckpointError:
            raise
        except (ValueError, OSError) as error:
            raise _not_whole(path, error) from error
        entries.pop("__metadata__", None)
        self._entries: dict[str, dict[str, Any]] = entries
        self._start = 8 + length
        try:
            self._checksums: dict[str, int] = self._read_checksums()
        except BaseException:
            self._file.close()
            raise

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        return tuple(self._entries[name]["shape"])

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """Read a tensor.

        Args:
            name: Out of ``names``.
            device: Where to put it.

        Raises:
            CheckpointError: The file became shorter, the tensor is damaged, or its dtype is one that torch has not.
        """
        import torch

        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{self._path}: tensor {name!r} has the unknown dtype {entry['dtype']!r}")
        dtype: torch.dtype = getattr(torch, _DTYPES[entry["dtype"]])
        tensor = torch.empty(entry["shape"], dtype=dtype)
        begin, end = entry["data_offsets"]
        if math.prod(entry["shape"]):
            self._file.seek(self._start + begin)
            content = tensor.view(-1).view(torch.uint8).numpy().data
            if self._file.readinto(content) != end - begin:  # type: ignore[attr-defined]
                raise self._changed()
            if name in self._checksums and zlib.crc32(content) != self._checksums[name]:
                raise self._damaged(f"tensor {name!r}")
        return tensor.to(device)

    def _read_checksums(self) -> dict[str, int]:
        """Those of the header, which is checked; none where another program wrote the file."""
        text = self.metadata.pop(CHECKSUMS, None)
        if text is None:
            return {}
        expected = checksums_text([header_checksum(self.metadata, self._entries)])
        if len(text) != len(expected) * (1 + len(self._entries)) or not text.startswith(expected):
            raise self._damaged("the header")
        try:
            _, *found = (value for (value,) in struct.iter_unpack(">I", bytes.fromhex(text)))
            return dict(zip(sorted(self._entries), found, strict=True))
        except (ValueError, struct.error) as error:  # no digits, or fewer
            raise self._damaged("the header") from error

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: {what} is damaged, it is not what was written ({CHECKSUMS}); get the file again"
        )

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = _stamp(os.fstat(self._file.fileno()))
        self._file.close()
        if now != self._stamp:
            raise self._changed() from error

    def _changed(self) -> CheckpointError:
        return CheckpointError(
            f"{self._path} was changed while it was read; read it again, and replace such files by renaming a complete "
            "one over them (as mv does, and save_qsam2)"
        )


def _checked_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Let safetensors check the whole header: that it is JSON, and that the tensors fill the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError as error:
        raise _not_whole(path, error) from error


def _not_whole(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is no complete safetensors file ({error}); it may be truncated, or a .pt checkpoint (quantize that "
        "first: qsam2 quantize)"
    )


def _stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
