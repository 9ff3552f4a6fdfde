"""The server as a process: ended while a clip is tracked, it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.data.video import write_video


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 130), ("SIGHUP", 0)])
def test_a_server_that_is_ended_while_it_tracks_leaves_no_uploads(tmp_path: Path, name: str, status: int) -> None:
    pytest.importorskip("uvicorn")
    frames = generate_sequence("test", 2, num_frames=2).frames
    write_video(tmp_path / "clip.mp4", [frames[0]] * 150)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def ask(path: str, body: bytes | None = None) -> Any:
        return json.load(urllib.request.urlopen(urllib.request.Request(f"http://{address}/api/{path}", body)))

    def wait_for(path: str) -> Any:
        for _ in range(600):
            try:
                return ask(path)
            except URLError:
                assert server.poll() is None
                time.sleep(0.1)
        raise AssertionError("the server did not answer in a minute")

    kept = tmp_path / "kept"
    kept.mkdir()
    line = [sys.executable, "-m", "qsam2_ao", "web", "--port", address.partition(":")[2]]
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # which children inherit; nohup and background jobs have it ignored
    try:
        server = subprocess.Popen(line, env={**os.environ, "TMPDIR": str(kept)}, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    with server:
        try:
            wait_for("models")
            clip = ask("clips?name=clip.mp4", (tmp_path / "clip.mp4").read_bytes())
            prompts = {"prompts": [{"frame": 0, "object": 1, "points": [[40, 50]], "labels": [1]}]}
            track = f"clips/{clip['id']}/track"
            ask(track, json.dumps(prompts).encode())
            while not ask(track)["done"]:
                time.sleep(0.05)
            assert ask(track)["done"] < 150
            assert list(kept.rglob("*.png"))
            server.send_signal(number)
            said = server.communicate(timeout=60)[1]
        finally:
            server.kill()
    assert server.returncode == status, said
    assert not list(kept.iterdir()), "uploads and masks are gone"
