"""setuptools, with torch as a requirement of those wheels only that get the CPU kernels as a library.

``QSAM2_BUILD_KERNELS``: 0 builds none, 1 fails where it cannot; without it they are built where a compiler is.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks

# By its path: importing the package takes all that it depends on.
_spec = importlib.util.spec_from_file_location("compiler", Path(__file__).parent / "qsam2_ao/native/compiler.py")
compiler = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compiler)

REQUIRED = os.environ.get("QSAM2_BUILD_KERNELS") == "1"


def why_no_library():
    """Why no library is built here; None if one is.

    Raises:
        SystemExit: It is required.
    """
    reason = None
    if os.environ.get("QSAM2_BUILD_KERNELS") == "0":
        reason = "QSAM2_BUILD_KERNELS=0."
    elif (reason := compiler.why_no_platform()) is None and not compiler.compilers():
        reason = "There is no C++ compiler; the kernels will be compiled at first use, if there is one then."
    if reason is not None and REQUIRED:
        sys.exit(f"QSAM2_BUILD_KERNELS=1: {reason}")
    return reason


def get_requires_for_build_wheel(config_settings=None):
    """Also a torch, for its headers. Any does: what is compiled with it runs with all that pyproject.toml accepts."""
    return build_meta.get_requires_for_build_wheel(config_settings) + ([] if why_no_library() else ["torch>=2.11"])
