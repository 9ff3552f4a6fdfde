"""The application: its commands, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path

import pytest

from qsam2_ao import PRESETS
from qsam2_ao.calibration.rounding import ROUNDINGS
from qsam2_ao.cli.common import PRESET_NAMES
from qsam2_ao.cli.sensitivity import ROUNDING_NAMES

COMMANDS = ("demo", "quantize", "evaluate", "segment", "track", "inspect")


@pytest.mark.parametrize("model", ["embedded", "sam2.1-t"])
def test_a_float_model_is_not_exported(run, tmp_path: Path, model: str):
    result = run("export", model, "-o", tmp_path)
    assert result.exit_code == 2
    assert f"{model} is a float model: quantize it" in result.stderr


def test_help_names_every_command(run):
    result = run("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(run, command: str):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: qsam2 {command}" in result.stdout


_QUICK = """
import sys
from qsam2_ao.cli.main import app
for line in sys.argv[1:]:
    try:
        app(line.split())
    except SystemExit as end:
        assert end.code == 0, line
    slow = {"torch", "torchvision", "torchao", "sam2", "numpy", "scipy", "matplotlib", "PIL", "av"}
    assert not slow & set(sys.modules), (line, sorted(slow & set(sys.modules)))
"""
_ALL = (*COMMANDS, "sensitivity", "export", *(f"benchmark {name}" for name in ("accuracy", "inference", "training")))


def test_lists_in_help_are_no_markup(run):
    shown = "".join(run("segment", "--help").stdout.replace("│", "").split())
    assert '"box":[x0,y0,x1,y1],"mask":"FILE"' in shown


def test_help_imports_nothing_that_takes_long():
    lines = ["--version", "--help", *(f"{command} --help" for command in (*_ALL, "benchmark"))]
    done = subprocess.run([sys.executable, "-c", _QUICK, *lines], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(lines) - 1


def test_the_package_is_a_command():
    done = subprocess.run([sys.executable, "-m", "qsam2_ao", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"qsam2 {version('qsam2_ao')}"


def test_the_help_names_what_there_is():
    assert ", ".join(PRESETS) == PRESET_NAMES
    assert ", ".join(ROUNDINGS) == ROUNDING_NAMES


def test_version(run):
    result = run("--version")
    assert result.stdout.strip() == f"qsam2 {version('qsam2_ao')}"


@pytest.mark.parametrize(
    "arguments", [["unknown"], ["segment"], ["demo", "--steps", "many"], ["demo", "--videos", "0"]]
)
def test_misspelt_command_lines_exit_with_2(run, arguments: list[str]):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr


def test_bugs_are_not_swallowed(run, monkeypatch: pytest.MonkeyPatch, packed_file: Path):
    import qsam2_ao.workflow.inspect as module

    monkeypatch.setattr(module, "load_model", lambda *_: 1 / 0)
    assert isinstance(run("inspect", packed_file).exception, ZeroDivisionError)


_SOON_TRAINING = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import pytest
from small_searches import make_searches_small
from qsam2_ao.cli.main import main
make_searches_small(pytest.MonkeyPatch())
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path):
    """In a process of its own, as a shell would send it; the second goes on from what the first finished."""
    arguments = ["quantize", "embedded", "--steps", "100000", "-o", str(tmp_path / "out.safetensors")]
    command = [sys.executable, "-c", _SOON_TRAINING, *arguments, "--images", "1", "--preset", "w8a8"]
    calibrated = []
    for name in ("SIGINT", "SIGTERM"):
        # Without a buffer, of which communicate would not know.
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
            try:
                assert process.stderr is not None
                said = b"".join(takewhile(lambda line: b"w8a8: training" not in line, process.stderr))
                time.sleep(1)  # so that it trains
                process.send_signal(getattr(signal, name))
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        assert process.returncode == 130, said + err
        assert b"run the same command again" in err
        assert b"Traceback" not in err
        assert out == b""
        assert not (tmp_path / "out.safetensors").exists()
        calibrated += [path.stat().st_mtime_ns for path in tmp_path.glob("out.safetensors.work/*/w8a8-prepared.pt")]
    assert len(calibrated) == 2
    assert calibrated[0] == calibrated[1], "calibrated again"
