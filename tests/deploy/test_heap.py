"""What the process has freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from processes import resident

from qsam2_ao.deploy.heap import trim_heap


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="has no malloc_trim"
)
def test_holes_between_what_stays_are_given_back() -> None:
    made = [torch.zeros(25_000) for _ in range(1000)]
    kept, made = made[::10], []
    before = resident()
    trim_heap()
    assert before - resident() > 60_000_000
    assert all(float(tensor.sum()) == 0 for tensor in kept)


def test_elsewhere_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "CDLL", None)
    trim_heap()
