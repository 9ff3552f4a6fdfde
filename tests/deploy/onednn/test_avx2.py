"""The target in processes that run as on CPUs without VNNI, whose products saturate."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qsam2_ao.deploy.onednn.processor import why_no_onednn
from qsam2_ao.deploy.targets import auto_target

REASON = why_no_onednn(torch.device("cpu"))


@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_the_tests_of_this_folder_without_vnni() -> None:
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow"]
    files = [str(Path(__file__).with_name(name)) for name in ("test_linear.py", "test_passes.py")]
    root = Path(__file__).parents[3]
    done = subprocess.run([*command, *files], env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "skipped" not in done.stdout


def test_other_processors_and_old_ones_are_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not on cuda" in str(why_no_onednn(torch.device("cuda")))
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert "riscv64" in str(why_no_onednn(torch.device("cpu")))
    assert auto_target()[0] == "packed"
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "AVX2" in str(why_no_onednn(torch.device("cpu")))
