"""The tests of the CPU's kernels on others than this process has, which is one library for its whole life."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]

_RUN_TESTS = """
import sys, pytest
from qsam2_ao.native import load_kernels
load_kernels()
with open("/proc/self/maps") as maps:
    assert sys.argv[1] in maps.read(), "these are other kernels"
sys.exit(pytest.main(["-q", "-x", "-s", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", *sys.argv[2:]]))
"""


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script and what it is given, in a process of its own that finds the package and what its tests share."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}
    return subprocess.run(
        [sys.executable, "-c", *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def run_tests(folder: Path, compiler: str, tests: Sequence[str], chosen: str, **environment: str) -> None:
    """Tests pass on kernels that a compiler compiles into a folder.

    Args:
        folder: Where the library is kept.
        compiler: Its command, with arguments.
        tests: Files, from the folder of all tests.
        chosen: Which of their tests, as pytest's ``-k``.
        environment: Of the process.
    """
    environment |= {"CXX": compiler, "XDG_CACHE_HOME": str(folder)}
    files = (str(ROOT / "tests" / name) for name in tests)
    done = run_script(_RUN_TESTS, str(folder), chosen, *files, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert " passed" in done.stdout
