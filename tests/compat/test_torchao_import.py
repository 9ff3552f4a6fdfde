from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from qsam2_ao.compat.torchao_import import import_noise_dropped


@pytest.mark.slow
def test_importing_it_after_the_package_prints_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import qsam2_ao, torchao"], capture_output=True, text=True, check=True
    )
    assert "Failed to load" not in done.stderr
    assert "Enum subclass" not in done.stderr


def test_warnings_show_again_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    with import_noise_dropped():
        logging.getLogger("torchao").warning("Failed to load what nobody needs")
        logging.getLogger("torchao").warning("something else")
    logging.getLogger("torchao").warning("Failed to load something that matters")
    assert [record.message for record in caplog.records] == ["something else", "Failed to load something that matters"]


def test_other_threads_warnings_show_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    def warn() -> None:
        logging.getLogger("torchao").warning("Failed to load theirs")

    with import_noise_dropped(), ThreadPoolExecutor(1) as pool:
        pool.submit(warn).result()
    assert "theirs" in caplog.text
