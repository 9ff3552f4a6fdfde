"""Names of devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qsam2_ao import load_qsam2
from qsam2_ao.devices import own_gpu, usable_device
from qsam2_ao.errors import QSAM2Error
from qsam2_ao.models.embedded import EMBEDDED_CONFIG
from qsam2_ao.models.official import build_official


def test_devices_that_are_here() -> None:
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "there is no device 'gpu'; .*cuda"),
        ("GPU:0", "there is no device 'GPU:0'; .*cuda"),
        ("CUDA", "there is no device 'CUDA'; .*cuda"),
        ("cup", "there is no device 'cup'; use cpu"),
        ("", "there is no device ''; use cpu"),
        ("cpu,cuda", "there is no device"),
        ("cuda:99", "cannot be used: this machine"),
        ("cuda:x", "there is no device 'cuda:x'"),
        ("meta", "computes nothing; use cpu"),
        ("mps", "cannot be used here .*cpu"),
        (["cpu"], "there is no device"),
    ],
)
def test_devices_that_are_not(name: str, message: str) -> None:
    with pytest.raises(QSAM2Error, match=message):
        usable_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cpu_is_advised() -> None:
    for name in ("gpu", "cuda", "cuda:0", "nvidia"):
        with pytest.raises(QSAM2Error, match="use cpu"):
            usable_device(name)


def test_both_loaders_say_so(packed_file: Path) -> None:
    with pytest.raises(QSAM2Error, match="there is no device 'gpu'"):
        load_qsam2(packed_file, device="gpu")
    with pytest.raises(QSAM2Error, match="there is no device 'gpu'"):
        build_official(str(EMBEDDED_CONFIG), device="gpu")


@pytest.mark.parametrize(("visible", "device"), [(0, "cuda:3"), (1, "cuda:0"), (8, "cuda:3")])
def test_a_process_that_is_shown_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch, visible: int, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert own_gpu(3) == device
