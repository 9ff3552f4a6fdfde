from __future__ import annotations

import pytest
from sam2 import sam2_video_predictor
from sam2.utils import misc

from qsam2_ao.compat.quiet import quiet_sam2


def test_no_bars_inside_and_the_originals_afterwards(capsys: pytest.CaptureFixture[str]) -> None:
    original = misc.tqdm
    with quiet_sam2():
        assert list(misc.tqdm(range(3), desc="frames")) == [0, 1, 2]
        assert list(sam2_video_predictor.tqdm(range(2))) == [0, 1]
    assert capsys.readouterr().err == ""
    assert misc.tqdm is original
    list(misc.tqdm(range(3), desc="frames"))
    assert "frames" in capsys.readouterr().err


def test_restored_after_an_error() -> None:
    original = sam2_video_predictor.tqdm
    with pytest.raises(KeyError), quiet_sam2():
        raise KeyError
    assert sam2_video_predictor.tqdm is original
