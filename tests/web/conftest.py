"""The page's server in this process."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.web.answers import Models
from qsam2_ao.web.serve import load_models


@pytest.fixture(scope="session")
def models(packed_file: Path) -> Models:
    return load_models(["embedded", f"{packed_file}@packed"])


@pytest.fixture(scope="session")
def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(generate_sequence("test", 2, num_frames=1).frames[0]).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def client(models: Models) -> Iterator:
    testclient = pytest.importorskip("starlette.testclient")
    from qsam2_ao.web.app import make_app

    app = make_app(models, max_upload=200_000, hosts=["testserver"])
    with testclient.TestClient(app) as client:
        yield client
