"""A model lowered for a GPU computes what the file says, with the kernels in Triton's interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_model_on_the_kernels_of_gpus(packed_file: Path) -> None:
    pytest.importorskip("triton")
    program = Path(__file__).with_name("interpreted_model.py")
    run = subprocess.run([sys.executable, program, packed_file], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout)
    assert len(errors) == 6
    assert max(errors.values()) < 0.05, errors
    assert errors["image encoder, packed"] == errors["image encoder, int8"]
    assert errors["memory attention, packed"] == errors["memory attention, int8"]
    for part in ("image encoder", "memory attention"):
        assert errors[f"{part}, packed"] != errors[f"{part}, int8 scores"]
