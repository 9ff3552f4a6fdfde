from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from qsam2_ao.compat.torchao_import import import_torchao


def test_importing_the_package_prints_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", "import qsam2_ao"], capture_output=True, text=True, check=True)
    assert "Failed to load" not in done.stderr
    assert "Enum subclass" not in done.stderr


def test_warnings_show_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    import_torchao()
    logging.getLogger("torchao").warning("Failed to load something that matters")
    assert "matters" in caplog.text
