"""Damaged copies of files: truncated, flipped, swapped, emptied, and with values that nobody would write."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

#: What is put in the place of a value of JSON.
_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 255, 2**31 - 1, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), 0.5, "", "x", "0",
    "../../etc/passwd", "é\0", [], {}, [[]], [None], {"a": {}}, list(range(100)),
)  # fmt: skip
_ODD_WORDS = (
    b"nan",
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"null",
    b"[" * 5000,
    b"{",
    b"}",
    b"\0",
    b"\xff\xfe",
    b"",
)


def damage(source: Path, target: Path, others: list[Path], rng: Random) -> None:
    """Write a damaged copy of a file or folder.

    Args:
        source: A whole one.
        target: Where to write.
        others: Files of other kinds, one of which may take its place.
        rng: Draws what is done.
    """
    if source.is_dir():
        shutil.copytree(source, target)
        _damage_folder(target, others, rng)
    elif rng.random() < 0.02:
        shutil.copyfile(rng.choice(others), target)
    else:
        target.write_bytes(damaged(source.read_bytes(), source.suffix, rng))


def damaged(content: bytes, suffix: str, rng: Random) -> bytes:
    """A damaged copy of a file's content."""
    if suffix == ".json" and rng.random() < 0.5:
        return _odd_json(content, rng)
    if suffix == ".safetensors" and rng.random() < 0.5:
        return _odd_header(content, rng)
    kinds = _TEXT if suffix in (".json", ".yaml", ".txt") and rng.random() < 0.7 else _BYTES
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        content = rng.choice(kinds)(content, rng)
    return content


def _damage_folder(folder: Path, others: list[Path], rng: Random) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    kind = rng.randrange(10)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.rename(path.with_name(rng.choice(("x", ".hidden", "0.png", "é.jpg", path.name + path.suffix))))
    elif kind == 2:
        shutil.copyfile(rng.choice([file for file in (*files, *others) if file != path]), path)
    elif kind == 3:
        path.unlink()
        path.mkdir()
    elif kind == 4:
        shutil.rmtree(rng.choice([folder, *(p for p in folder.rglob("*") if p.is_dir())]))
    else:
        path.write_bytes(damaged(path.read_bytes(), path.suffix, rng))


def _place(content: bytes, rng: Random) -> int:
    """An offset; most of what a reader decides on is in the first bytes."""
    return rng.randrange(min(len(content), rng.choice((64, 1024, len(content)))) or 1) if content else 0


def _flip(content: bytes, rng: Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if data:
            data[_place(content, rng)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _overwrite(content: bytes, rng: Random) -> bytes:
    start, length = _place(content, rng), rng.choice((1, 2, 4, 8, 64))
    filling = rng.choice((b"\0" * length, b"\xff" * length, b"\x7f" + b"\xff" * (length - 1), rng.randbytes(length)))
    return content[:start] + filling + content[start + length :]


def _delete(content: bytes, rng: Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + rng.choice((1, 4, 100, 10_000)) :]


def _repeat(content: bytes, rng: Random) -> bytes:
    start, length = _place(content, rng), rng.choice((1, 4, 100, 10_000))
    return content[: start + length] + content[start : start + length] + content[start + length :]


def _swap(content: bytes, rng: Random) -> bytes:
    a, b = sorted((_place(content, rng), _place(content, rng)))
    length = min(rng.choice((1, 8, 200)), b - a)
    first, second = content[a : a + length], content[b : b + length]
    return content[:a] + second + content[a + length : b] + first + content[b + length :]


def _insert_word(content: bytes, rng: Random) -> bytes:
    start = _place(content, rng)
    return content[:start] + rng.choice(_ODD_WORDS) + content[start:]


def _replace_number(content: bytes, rng: Random) -> bytes:
    words = content.split(b" ")
    numbers = [i for i, word in enumerate(words) if word.strip(b",:[]{}\n").replace(b".", b"").isdigit()]
    if not numbers:
        return _insert_word(content, rng)
    words[rng.choice(numbers)] = rng.choice(_ODD_WORDS)
    return b" ".join(words)


def _shuffle_lines(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"\n".join(lines)


def _drop_line(content: bytes, rng: Random) -> bytes:
    lines = content.split(b"\n")
    lines.pop(rng.randrange(len(lines)))
    return b"\n".join(lines)


Change = Callable[[bytes, Random], bytes]
_BYTES: tuple[Change, ...] = (
    _flip, _flip, _overwrite, _overwrite, _delete, _repeat, _swap, _insert_word,
    lambda content, rng: content[: rng.randrange(len(content) + 1)],
    lambda content, rng: content[: _place(content, rng)],
    lambda content, rng: b"",
)  # fmt: skip
_TEXT: tuple[Change, ...] = (_insert_word, _replace_number, _replace_number, _shuffle_lines, _drop_line, _flip, _delete)


def _odd_json(content: bytes, rng: Random) -> bytes:
    try:
        value = json.loads(content)
    except ValueError:
        return _flip(content, rng)
    for _ in range(rng.choice((1, 1, 3))):
        value = _odd_value(value, rng)
    return json.dumps(value).encode()


def _odd(rng: Random) -> Any:
    return copy.deepcopy(rng.choice(_ODD_VALUES))  # it may be changed again


def _odd_value(value: Any, rng: Random) -> Any:
    """The same value with one inside replaced, removed or added."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.05:
        return _odd(rng)
    key, kind = rng.choice(keys), rng.randrange(12)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[rng.choice(("", "x", "_target_", str(key) + "x"))] = _odd(rng)
    elif kind == 1:
        value.append(_odd(rng))
    elif isinstance(value[key], (dict, list)) and value[key]:
        value[key] = _odd_value(value[key], rng)
    elif isinstance(value[key], int) and rng.random() < 0.5:
        value[key] = rng.choice((value[key] + 1, value[key] * 2, -value[key], value[key] * 1000, value[key] // 2))
    else:
        value[key] = _odd(rng)
    return value


def _odd_header(content: bytes, rng: Random) -> bytes:
    """A safetensors file whose header is JSON still, with a value in it that does not belong there."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    nested = [key for key, text in metadata.items() if text[:1] in ("{", "[")]
    if nested and rng.random() < 0.7:
        key = rng.choice(nested)
        metadata[key] = _odd_json(metadata[key].encode(), rng).decode()
    elif metadata and rng.random() < 0.2:
        metadata[rng.choice(list(metadata))] = rng.choice(("", "x", "99", "1", "null", "[]"))
    else:
        header = _odd_value(header, rng)
    text = json.dumps(header).encode()
    if rng.random() < 0.05:
        return rng.choice((2**63, 2**40, 99_999_999, 0)).to_bytes(8, "little") + text + content[8 + length :]
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
