"""``qsam2 web``: what is refused before anything listens."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.safetensors"], "no model 'absent.safetensors'"),
        (["--host", "0.0.0.0"], "say by which --name it may"),
        (["--max-upload", "0"], "--max-upload"),
    ],
)
def test_bad_input_is_named(run, arguments: list[str], message: str):
    result = run("web", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_port_in_use_is_an_error(run):
    pytest.importorskip("uvicorn")
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        result = run("web", "--port", used.getsockname()[1])
    assert result.exit_code == 2
    assert "cannot be listened on; choose another --port" in result.stderr
