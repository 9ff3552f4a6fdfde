"""Bars on a terminal, lines elsewhere."""

from __future__ import annotations

import io
import os

import pytest

from qsam2_ao import progress
from qsam2_ao.progress import in_lines, tqdm


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _a_plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")])
def test_what_makes_it_lines(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    assert not in_lines(Terminal())
    assert in_lines(io.StringIO())
    monkeypatch.setenv(name, value)
    assert in_lines(Terminal())


def test_a_terminal_has_a_bar() -> None:
    out = Terminal()
    assert list(tqdm(range(3), desc="tracking", file=out)) == [0, 1, 2]
    assert "\rtracking: 100%|" in out.getvalue()


def test_a_pipe_has_one_line_for_short_work() -> None:
    out = io.StringIO()
    assert list(tqdm(range(3), desc="tracking", unit="frame", file=out)) == [0, 1, 2]
    assert out.getvalue().startswith("tracking: 3/3 [00:00<00:00, ")
    assert out.getvalue().endswith("frame/s]\n")
    assert out.getvalue().count("\n") == 1
    assert "\r" not in out.getvalue()


def test_long_work_has_more_lines_and_says_what_it_is_at(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = tqdm(total=4, desc="training", file=out)
    for step in range(4):
        now[0] += progress.LINE_SECONDS / 2
        bar.update()
        bar.set_postfix_str(f"loss {step}")
    bar.close()
    bar.close()
    assert [line.split(" ")[1] for line in out.getvalue().splitlines()] == ["2/4", "4/4"]
    assert "loss 1" in out.getvalue()


def test_without_a_total_or_anything_done(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    list(tqdm(iter("ab"), desc="reading", file=out))
    list(tqdm([], desc="nothing", file=out))
    list(tqdm(range(3), desc="quiet", file=out, disable=True))
    assert out.getvalue().startswith("reading: 2 [")
    assert out.getvalue().count(os.linesep) == 1
