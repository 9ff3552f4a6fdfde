"""What a second run of the demo takes over from the first; the whole journey is in ``tests/cli/test_demo.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.workflow import demo


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_photographs_are_of_the_presets_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(presets):
        drawn.append(presets)
        return Image.new("RGB", (10 * len(presets), 10)), {}

    scores = {"jf": 1.0, "j": 1.0, "f": 1.0, "miou": 1.0}
    masks = np.zeros((demo.PICTURES, demo.FRAMES, 96, 96), np.uint8)
    monkeypatch.setattr(demo, "draw_photographs", draw)
    monkeypatch.setattr(demo, "_evaluate", lambda *_: (scores, masks))
    for presets in (["w8a8"], ["w8a8", "w4a8"], ["w8a8", "w4a8"]):
        result = demo.run_demo(tmp_path, presets, steps=0, images=1, videos=1)
        assert Image.open(result.pictures[-1]).size == (10 * len(presets), 10)
    assert drawn == [["w8a8"], ["w8a8", "w4a8"]]
