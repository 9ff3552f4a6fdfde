"""The tutorials run, as a reader would run them, in one process and with small budgets."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from qsam2_ao.training.batches import BatchKind, Stage

TUTORIALS = Path(__file__).parents[1] / "tutorials"
#: What each says, and the picture or file that it leaves. Train comes before deploy, which takes its file.
EXPECTED = {
    "quantize_and_look": ("normalization is computed in float", "masks.png"),
    "train": ("w2a8, trained", "w2a8.safetensors"),
    "deploy": ("recipe w2a8", "deployed.png"),
    "choose_bits": ("mask decoder in mixed bits", "mask_decoder.png"),
    "compare_quantizers": ("the best here: ", None),
}


def test_every_tutorial_is_tested() -> None:
    assert {path.stem for path in TUTORIALS.glob("*.py")} == EXPECTED.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_the_tutorials_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSAM2_QUICK", "1")
    monkeypatch.setattr("qsam2_ao.training.qat.QAT_STAGES", (Stage(0, ((BatchKind(1, 2, 1), 1.0),)),))
    monkeypatch.delenv("QSAM2_FILE", raising=False)
    for name, (said, written) in EXPECTED.items():
        runpy.run_path(str(TUTORIALS / f"{name}.py"))
        assert said in capsys.readouterr().out, name
        assert written is None or (tmp_path / "outputs/tutorial" / written).exists(), name


@pytest.mark.slow
def test_a_tutorial_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Where sam2 is imported first by the tutorial itself."""
    command = [sys.executable, "-W", "ignore", str(TUTORIALS / "deploy.py")]
    environment = {**os.environ, "QSAM2_QUICK": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "mask generator" in done.stdout
