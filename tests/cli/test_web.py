"""``qsam2 web``: what is refused before anything listens."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.safetensors"], "no model 'absent.safetensors'"),
        (["--host", "0.0.0.0"], "say by which --name it may"),
        (["--max-upload", "0"], "--max-upload"),
        (["--max-pixels", "0"], "--max-pixels"),
    ],
)
def test_bad_input_is_named(run, arguments: list[str], message: str):
    result = run("web", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_a_port_in_use_is_an_error():
    pytest.importorskip("uvicorn")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        # In a process of its own: uvicorn sets up logging and signals of the whole process.
        command = [sys.executable, "-m", "qsam2_ao", "web", "--port", str(used.getsockname()[1])]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2, result.stderr
    assert "cannot be listened on; choose another --port" in " ".join(result.stderr.split())
