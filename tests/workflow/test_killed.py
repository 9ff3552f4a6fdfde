"""``kill -9`` at any moment changes nothing in the file at the end; for more moments: ``make kill``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from killing import try_moments


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes to kill in /proc")
def test_a_run_that_is_killed_again_and_again(tmp_path: Path):
    found = try_moments(tmp_path, moments=2, seed=1)
    assert any("killed" in moment for moment in found)
