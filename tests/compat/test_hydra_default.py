"""A program that imports qsam2_ao, and so sam2, before it initialises Hydra itself, as SAM2's launcher does."""

from __future__ import annotations

import subprocess
import sys

_LAUNCHER = """
from qsam2_ao.models import official
import sam2
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

assert GlobalHydra.instance().is_initialized()  # by sam2
compose("configs/sam2.1/sam2.1_hiera_t.yaml")
with initialize_config_module("sam2", version_base="1.2"):
    compose("configs/sam2.1/sam2.1_hiera_s.yaml")
initialize_config_module("qsam2_ao", version_base="1.2")
compose("models/configs/qsam2_embedded.yaml")
try:
    initialize_config_module("sam2", version_base="1.2")
except ValueError as error:
    print(error)
"""

_ITS_OWN = """
import qsam2_ao
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

initialize_config_module("qsam2_ao", version_base="1.2")
import sam2
assert type(GlobalHydra.instance()) is GlobalHydra
compose("models/configs/qsam2_embedded.yaml")
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_a_launcher_initialises_hydra_once_more_and_no_oftener():
    assert "already initialized" in run(_LAUNCHER)


def test_hydra_that_was_initialised_before_stays():
    assert run(_ITS_OWN) == ""
