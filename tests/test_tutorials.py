"""The tutorials run, one on the other's result, as a reader would run them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "ignore", str(TUTORIALS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quantize_and_deploy(tmp_path: Path):
    out = run("quantize_your_own.py", "--images", 2, "--steps", 1, "--videos", 1, "--output", tmp_path)
    assert out.count("J&F") == 4
    assert "normalization is computed in float" in out
    out = run("deploy_packed.py", tmp_path / "w2a8.safetensors", "--frames", 2, "--output", tmp_path)
    assert "recipe w2a8" in out
    assert (tmp_path / "deployed.png").exists()
