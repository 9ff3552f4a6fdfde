"""Sizes: what is counted, and once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.errors import CheckpointError
from qsam2_ao.reporting.size import file_size, human_bytes, model_size, tensor_bytes


def packed(bits: int, shape: tuple[int, ...] = (8, 16)) -> PackedIntxTensor:
    codes = torch.arange(torch.Size(shape).numel()).remainder(2**bits).reshape(shape)
    return PackedIntxTensor.from_codes(codes, torch.ones(shape[0]), torch.zeros(shape[0]), bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_packed_weight_takes_its_bits_and_its_ranges(bits: int):
    assert tensor_bytes(packed(bits)) == 8 * 16 * bits // 8 + 8 * (4 + 4)


def test_a_packed_model_beside_its_references():
    linear = nn.Linear(16, 8)
    linear.weight = nn.Parameter(packed(2), requires_grad=False)
    size = model_size(linear)
    assert size.values == 8 * 16 + 8
    assert size.float32_bytes == 2 * size.bfloat16_bytes == 4 * 136
    assert size.packed_values == 128
    assert size.actual_bytes == size.packed_bytes + 8 * 4
    assert size.compression == 272 / (96 + 32)
    assert size.bits_per_packed_value == 6.0
    assert size.to_dict()["compression"] == size.compression


def test_shared_and_unsaved_tensors():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    first.register_buffer("scratch", torch.zeros(100), persistent=False)
    first.register_buffer("kept", torch.zeros(3, dtype=torch.float64))
    size = model_size(nn.Sequential(first, second))
    assert size.values == 16 + 4 + 4 + 3
    assert size.actual_bytes == 4 * 24 + 8 * 3
    assert size.bits_per_packed_value is None


def test_meta_models_can_be_measured():
    with torch.device("meta"):
        assert model_size(nn.Linear(1000, 1000, bias=False)).actual_bytes == 4_000_000


def test_nothing_to_measure():
    with pytest.raises(CheckpointError, match="ReLU"):
        model_size(nn.ReLU())


def test_file_sizes(tmp_path: Path):
    (tmp_path / "model").write_bytes(b"12345")
    assert file_size(tmp_path / "model") == 5
    with pytest.raises(CheckpointError, match="absent"):
        file_size(tmp_path / "absent")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**40, "3072.0 GiB")],
)
def test_sizes_for_people(size: int, text: str):
    assert human_bytes(size) == text
