"""The picture of real photographs: what was asked for, and every model's masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.benchmark import photographs
from qsam2_ao.data.photographs import PHOTOGRAPHS, Photograph
from qsam2_ao.workflow import photographs as drawing


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda photograph: photograph.name)
def test_boxes_lie_on_square_pictures(photograph: Photograph) -> None:
    height, width, channels = photograph.read().shape
    assert (height, channels) == (width, 3)
    for left, top, right, bottom in photograph.boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_the_picture_shows_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(photographs, "PRESETS", ("w8a8",))
    monkeypatch.setattr(drawing, "OTHERS", ("moon",))
    monkeypatch.setattr(drawing, "PHOTOGRAPHS", PHOTOGRAPHS[:1])
    output = tmp_path / "photographs.png"
    photographs.main(["-o", str(output)])
    sheet = np.asarray(Image.open(output))
    assert sheet.shape[1] > 2.5 * sheet.shape[0]  # boxes, float and w8a8 side by side
    agreement = float(capsys.readouterr().out.split("w8a8 ")[1].split(" %")[0])
    assert agreement > 90
