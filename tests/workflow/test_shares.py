"""Shares of work: all of it once, however it is counted."""

from __future__ import annotations

import pytest

from qsam2_ao.errors import QConfigError
from qsam2_ao.workflow.shares import Share, share_of


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("first", [0, 1])
def test_shares_are_all_items_once_counted_from_0_or_from_1(first: int) -> None:
    shares = [share_of(f"{number}/3").of("abcdefgh") for number in range(first, first + 3)]
    assert sorted("".join(map("".join, shares))) == list("abcdefgh")
    assert share_of(None).of("abc") == list("abc")


@pytest.mark.parametrize("text", ["3", "4/3", "1/0", "-1/3", "a/b", "1/3/5"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(QConfigError, match=f"--shard {text}: give I/N"):
        share_of(text)


def test_torchrun_deals_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    share = share_of(None)
    assert share == Share(3, 4, together=True, local=1)
    assert (share.device("cuda"), share.device("cpu"), share.device("cuda:0")) == ("cuda:1", "cpu", "cuda:0")
    assert not share.all_done(list, "video"), "the first one reports"
    with pytest.raises(QConfigError, match="torchrun and srun deal by rank"):
        share_of("0/4")


def test_the_last_share_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert Share(1, 2).all_done(list, "video")
    assert not Share(1, 2).all_done(lambda: ["bear", "cat"], "video")
    assert "of other shares still to come: 2 videos (bear, cat)" in capsys.readouterr().err
    left = [["bear"], ["bear"], []]
    assert Share(0, 2, together=True).all_done(lambda: left.pop(0), "video"), "it waits for the others"
