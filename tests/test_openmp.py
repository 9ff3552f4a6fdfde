"""What the command line sets before torch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qsam2_ao.openmp import wait_briefly


def test_it_is_set_unless_the_user_has_said_how_threads_wait() -> None:
    environment: dict[str, str] = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": "300"}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        mine = {name: "mine"}
        wait_briefly(mine)
        assert mine == {name: "mine"}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), [("evaluate", "300"), ("benchmark", "None")])
def test_the_command_line_sets_it_before_torch_is_there(command: str, expected: str) -> None:
    code = f"""
import os, sys
os.environ.pop("GOMP_SPINCOUNT", None), os.environ.pop("OMP_WAIT_POLICY", None)
sys.argv = ["qsam2", "{command}", "--help"]
from qsam2_ao.cli import main
assert "torch" not in sys.modules
try:
    main.main()
finally:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == expected
