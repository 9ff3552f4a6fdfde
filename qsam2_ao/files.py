"""Writing files so that an interruption, a full disk or an error never leaves half a file behind."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, QSAM2Error
from .tensor_file import CHECKSUMS, checksums_text, header_checksum

if TYPE_CHECKING:
    from torch import Tensor

#: What names of files end with that commands write or people may want: no folder is made of such a name.
_FILE_SUFFIXES = {
    *(".avi", ".gif", ".jpeg", ".jpg", ".mkv", ".mov", ".mp4", ".png", ".tif", ".tiff", ".webm", ".webp"),
    *(".bin", ".json", ".onnx", ".pt", ".pt2", ".pth", ".safetensors", ".xml", ".yaml", ".yml"),
}


def check_output_file(path: str | os.PathLike[str], suffix: str, size: int = 0) -> None:
    """Say before the work for it starts that a file cannot be written; nothing is left there.

    Args:
        path: The file to be written.
        suffix: How its name must end.
        size: Bytes that it and the files beside it will take, about.

    Raises:
        QSAM2Error: It is a folder, its name ends otherwise, or its place cannot be written or has too little room.

    Example:
        >>> check_output_file("outputs/w4a8.safetensors", ".safetensors", size=10**6)
    """
    target = Path(path)
    if target.is_dir():
        raise QSAM2Error(f"{target} is a folder; name a file in it, such as {target / f'model{suffix}'}")
    if target.suffix != suffix:
        raise QSAM2Error(f"{target}: a {suffix} file is written; name it {target.with_suffix(suffix)}")
    _check_place(target, target.parent, size)


def check_output_folder(path: str | os.PathLike[str], size: int = 0, files: Iterable[str] = ()) -> None:
    """Say before the work for it starts that a folder cannot be written; nothing is left there.

    Args:
        path: The folder, which need not exist.
        size: Bytes that its files will take, about.
        files: Names of files that will be written there, as far as they are known.

    Raises:
        QSAM2Error: It is a file or has the name of one, cannot be written, has too little room, or has a folder in the
            place of a file.

    Example:
        >>> check_output_folder("outputs/demo", files=["demo.json"])
    """
    folder = Path(path)
    if folder.suffix.lower() in _FILE_SUFFIXES and not folder.exists():
        raise QSAM2Error(f"{folder}: a folder is written, not a {folder.suffix} file; name it {folder.with_suffix('')}")
    _check_place(folder, folder, size)
    for name in files:
        if (folder / name).is_dir():
            raise QSAM2Error(
                f"cannot write {folder / name}: a folder has this name; choose another place, or remove it"
            )


def _check_place(target: Path, folder: Path, size: int) -> None:
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise QSAM2Error(f"cannot write {target}: {existing} is a file, not a folder; choose another place")
    probe = existing / f".{secrets.token_hex(8)}.tmp"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise QSAM2Error(
            f"cannot write {target}: no file can be made in {existing} ({error.strerror}); choose another place"
        ) from error
    free = shutil.disk_usage(existing).free
    if free < size:
        raise QSAM2Error(
            f"cannot write {target}: it takes about {size / 1e6:,.1f} MB with the files of its making, and there are "
            f"{free / 1e6:,.1f} MB; free some space or choose another place"
        )


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
    target = Path(os.path.realpath(path))  # a link stays one
    if not target.name:
        raise QSAM2Error(f"cannot write {path}: it is no file; name one in it")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(8)}.tmp{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise QSAM2Error(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise QSAM2Error(
            f"cannot write {path}: {error.strerror or error}; free some space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with checksums, whose bytes are a function of its content.

    safetensors writes metadata in random order.

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

    apart: dict[int, str] = {}
    given: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        # Layers may share a weight; safetensors writes no tensor twice unless it is one of its own.
        shared = apart.setdefault(value.untyped_storage().data_ptr(), name) != name
        given[name] = value.clone() if shared else value
    content = memoryview(save(given))
    end = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(bytes(content[8:end]))
    checksums = [header_checksum(metadata, entries)]
    for _, entry in sorted(entries.items()):
        first, last = entry["data_offsets"]
        checksums.append(zlib.crc32(content[end + first : end + last]))
    texts = {**metadata, CHECKSUMS: checksums_text(checksums)}
    header = json.dumps({"__metadata__": dict(sorted(texts.items())), **entries}, separators=(",", ":")).encode()
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


def load_torch(path: str | os.PathLike[str], problem: str, remedy: str = "", *, mmap: bool = False) -> Any:
    """``torch.load`` of plain values and tensors, onto the CPU, which runs no code from the file.

    Args:
        path: The file.
        problem: What is said of a damaged file, behind its path.
        remedy: What is said then, behind the reason.
        mmap: Leave tensors on disk until they are used.

    Returns:
        What was saved.

    Raises:
        CheckpointError: The file is absent, damaged, or would have to run code.

    Example:
        >>> load_torch("training.pt", "is damaged", "; delete it to start again")  # doctest: +SKIP
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # torch.load reports damage by many exception types
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} {problem} ({type(error).__name__}: {reason}){remedy}") from error
