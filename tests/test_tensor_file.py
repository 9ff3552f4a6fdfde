from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qsam2_ao.errors import CheckpointError
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
        with pytest.raises(CheckpointError, match="bad is no complete safetensors file"):
            TensorFile(tmp_path / "bad")
