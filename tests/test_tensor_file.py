from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from qsam2_ao.errors import CheckpointError
from qsam2_ao.files import save_tensors
from qsam2_ao.tensor_file import TensorFile

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float64)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    made = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    return made | {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}


@pytest.fixture
def path(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    save_file(tensors, tmp_path / "x.safetensors", {"who": "me"})
    return tmp_path / "x.safetensors"


def test_it_reads_what_safetensors_wrote(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with TensorFile(path) as file:
        assert file.metadata == {"who": "me"}
        assert set(file.names) == set(tensors)
        for name, tensor in tensors.items():
            assert file.shape(name) == tuple(tensor.shape)
            assert file.tensor(name).dtype == tensor.dtype
            assert torch.equal(file.tensor(name), tensor)


def test_nothing_of_the_file_is_mapped(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with TensorFile(path) as file:
        read = {name: file.tensor(name) for name in file.names}
    with open(path, "r+b") as other:
        other.write(b"\x7f" * path.stat().st_size)
    os.truncate(path, 0)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_changes_meanwhile_is_refused(path: Path) -> None:
    content = path.read_bytes()
    file = TensorFile(path)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"x\.safetensors was changed while it was read"):
        file.__exit__(None, None, None)
    path.write_bytes(content)
    with TensorFile(path) as whole:
        last = whole.names[-1]
        assert whole.tensor(last).shape == whole.shape(last)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        _read_while_it_is_cut_off(path)


def _read_while_it_is_cut_off(path: Path) -> None:
    with TensorFile(path) as file:
        os.truncate(path, path.stat().st_size // 2)
        for name in file.names:  # of so small a file all may be in memory already: then the end of the block tells
            file.tensor(name)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_an_error_or_changes_nothing(
    tensors: dict[str, torch.Tensor], tmp_path: Path, data: st.DataObject
) -> None:
    """It changes nothing in the spaces behind the header."""
    path = tmp_path / "checked.safetensors"
    save_tensors(tensors, path, {"who": "me"})
    content = bytearray(path.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        with TensorFile(path) as file:
            read = {name: file.tensor(name) for name in file.names}
            about = file.metadata
    except CheckpointError:
        pass
    else:
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
        assert about.pop("who") == "me"
        assert len(about) <= 1, "the name of the checksums may be another one now"


@pytest.mark.parametrize("rest", ["", "[1]", "x", "0", "+", " ", "\u0663", "00000000"])
def test_checksums_that_are_none(path: Path, tensors: dict[str, torch.Tensor], rest: str) -> None:
    save_tensors(tensors, path, {"who": "me"})
    with safe_open(path, framework="pt") as file:
        written = file.metadata()["crc32"]
    assert len(written) == 8 * (1 + len(tensors))
    padding = (rest * len(written))[: len(written) - 8]
    for wrong in (rest, written + rest + "0", written[:7] + rest, "ffffffff" + padding, written[:8] + padding):
        save_file(tensors, path, {"who": "me", "crc32": wrong})
        with pytest.raises(CheckpointError, match=r"x\.safetensors: .* is damaged"), TensorFile(path) as file:
            [file.tensor(name) for name in file.names]


def test_a_damaged_tensor_is_named(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_tensors({"a": torch.zeros(8), "b": torch.zeros(8)}, tmp_path / "x", {})
    content = bytearray((tmp_path / "x").read_bytes())
    content[-1] ^= 1
    (tmp_path / "x").write_bytes(content)
    with TensorFile(tmp_path / "x") as file:
        assert torch.equal(file.tensor("a"), torch.zeros(8))
        with pytest.raises(CheckpointError, match="x: tensor 'b' is damaged, it is not what was written"):
            file.tensor("b")


def test_a_file_that_another_replaces_is_read_to_the_end(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with TensorFile(path) as file:
        save_file({"scalar": torch.tensor(4.0)}, path.with_name("new"))
        os.replace(path.with_name("new"), path)
        assert file.tensor("scalar") == 3


def test_what_is_no_safetensors_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a folder"):
        TensorFile(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        TensorFile(tmp_path / "absent")
    for content in (b"", b"\x00" * 8, b"\xff" * 20, b"\x02" + b"\x00" * 7 + b"{}" + b"x"):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(CheckpointError, match="bad is no complete safetensors file") as caught:
            TensorFile(tmp_path / "bad")
        assert str(caught.value).count("is no complete") == 1
