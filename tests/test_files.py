"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from threads import during

from qsam2_ao.errors import QSAM2Error
from qsam2_ao.files import atomic_write, check_output_file, check_output_folder, save_tensors, save_torch


def test_a_file_appears_when_it_is_complete(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_mode_is_that_of_a_plain_file(tmp_path: Path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_text("")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_other_threads_keep_their_umask(tmp_path: Path):
    def write() -> None:
        for _ in range(200):
            with atomic_write(tmp_path / "file") as temporary:
                temporary.write_text("")

    def private() -> None:
        (tmp_path / "private").unlink(missing_ok=True)
        (tmp_path / "private").touch()
        assert stat.S_IMODE((tmp_path / "private").stat().st_mode) == 0o600

    before = os.umask(0o077)
    try:
        during(write, private)
    finally:
        os.umask(before)


def test_a_place_that_is_no_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match="cannot write"), atomic_write(tmp_path / "file" / "below"):
        pytest.fail("nothing can be written here")
    with pytest.raises(QSAM2Error, match="cannot write /: it is no file"), atomic_write("/"):
        pytest.fail("nothing can be written here")


def write_bytes(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(100))


def write_torch(path: Path) -> None:
    save_torch({"weights": torch.zeros(1000)}, path)


@pytest.mark.parametrize("write", [write_bytes, write_torch])
def test_a_disk_that_fills_up(tmp_path: Path, write: Callable[[Path], None]):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(QSAM2Error, match=r"cannot write .*file: .*free some space"):
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_torch_files_read_back(tmp_path: Path):
    save_torch({"weights": torch.arange(3)}, tmp_path / "new" / "weights.pt")
    assert torch.load(tmp_path / "new" / "weights.pt")["weights"].tolist() == [0, 1, 2]
    with pytest.raises(AttributeError):
        save_torch(lambda: None, tmp_path / "function.pt")
    assert not (tmp_path / "function.pt").exists()


def test_tensors_are_written_in_one_order(tmp_path: Path):
    tensors = {"b": torch.arange(3, dtype=torch.uint8), "a": torch.randn(2, 3).T, "empty": torch.zeros(0)}
    metadata = {key: f"\u00fc {key}" for key in "hgfedcba"}
    save_tensors(tensors, tmp_path / "one", metadata)
    save_tensors(dict(reversed(tensors.items())), tmp_path / "two", dict(reversed(metadata.items())))
    content = (tmp_path / "one").read_bytes()
    assert (tmp_path / "two").read_bytes() == content
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    assert list(json.loads(content[8:start])["__metadata__"]) == [*"abc", "crc32", *"defgh"]
    with safe_open(tmp_path / "one", framework="pt") as file:
        assert {name: text for name, text in file.metadata().items() if name != "crc32"} == metadata
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in tensors.items())


def test_tensors_that_cannot_be_written_leave_the_old_file(tmp_path: Path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(QSAM2Error, match="cannot write"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "file" / "model.safetensors", {})
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{folder}", r"is a folder; name a file in it, such as .*model\.safetensors"),
        ("{folder}/x.pt", r"x\.pt: a \.safetensors file is written; name it .*x\.safetensors"),
        ("{file}/x.safetensors", "is a file, not a folder"),
        ("/proc/absent/x.safetensors", "no file can be made in /proc"),
    ],
)
def test_an_output_that_cannot_be_written_is_known_beforehand(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match=message):
        check_output_file(path.format(folder=tmp_path, file=tmp_path / "file"), ".safetensors")


def test_too_little_room_is_known_beforehand(tmp_path: Path) -> None:
    target = tmp_path / "new" / "x.safetensors"
    check_output_file(target, ".safetensors", size=1)
    with pytest.raises(QSAM2Error, match=r"it takes about 1,000,000,000,000\.0 MB .* free some space"):
        check_output_file(target, ".safetensors", size=10**18)
    with pytest.raises(QSAM2Error, match="free some space"):
        check_output_folder(target.parent, size=10**18)
    assert not target.parent.exists(), "nothing is made yet"


def test_a_file_is_no_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_output_folder(tmp_path / "new")
    with pytest.raises(QSAM2Error, match="is a file, not a folder"):
        check_output_folder(tmp_path / "file")
    with pytest.raises(QSAM2Error, match=r"a folder is written, not a \.ONNX file; name it .*/tiny$"):
        check_output_folder(tmp_path / "tiny.ONNX")
    check_output_folder(tmp_path / "tiny-2.1")
    (tmp_path / "tiny.onnx").mkdir()
    check_output_folder(tmp_path / "tiny.onnx", files=["mask.onnx"])
    (tmp_path / "tiny.onnx" / "mask.onnx").mkdir()
    with pytest.raises(QSAM2Error, match=r"cannot write .*mask\.onnx: a folder has this name"):
        check_output_folder(tmp_path / "tiny.onnx", files=["mask.onnx"])
