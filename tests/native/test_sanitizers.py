"""The CPU's kernels as clang compiles them: with its sanitizers, and optimized.

clang's AddressSanitizer looks at loads and stores under a mask, which GCC's lets pass. OpenMP is left out, as torch
brings GCC's.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from other_kernels import run_script, run_tests

from qsam2_ao.native import why_no_kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels())),
]
TESTS = ["native/test_kernels.py", "native/test_int8_scores.py", "native/test_ops.py", "deploy/kernels/test_rotary.py"]
TESTS += ["deploy/kernels/test_upscaling.py"]
LEFT_OUT = "not cuda and not models and not official and not described and not guarded"
SANITIZE = "-O0 -g1 -shared-libasan -fsanitize=address,undefined -fno-sanitize-recover=all"
SANITIZERS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
"""The leaks are Python's own."""

FAULTY = """
#include <immintrin.h>
#include <cstring>
#ifdef __AVX512F__
extern "C" void reads_too_much(const float* five, float* sixteen) {
  _mm512_storeu_ps(sixteen, _mm512_maskz_loadu_ps(0x3F, five));
}
extern "C" void writes_too_much(float* five, float*) { _mm512_mask_storeu_ps(five, 0x3F, _mm512_setzero_ps()); }
#else
extern "C" void reads_too_much(const float* five, float* sixteen) { std::memcpy(sixteen, five, 24); }
extern "C" void writes_too_much(float* five, float*) { std::memset(five, 0, 24); }
#endif
extern "C" void overflows(float*, float* sixteen) { *sixteen = 1 << (int)(40 + *sixteen); }
"""
CALL = """
import ctypes, sys, torch
five, sixteen = torch.zeros(5), torch.zeros(16)
getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(*(ctypes.c_void_p(x.data_ptr()) for x in (five, sixteen)))
"""
FAULTS = {"reads_too_much": "READ of size", "writes_too_much": "WRITE of size", "overflows": "shift exponent 40"}


@functools.cache
def clang() -> str:
    """The compiler; the test is skipped where there is none."""
    names = ["clang++", *(f"clang++-{version}" for version in range(30, 11, -1))]
    found = next(filter(None, map(shutil.which, names)), None)
    return found or pytest.skip("there is no clang++")


@functools.cache
def runtime() -> str:
    """The library of clang's AddressSanitizer; the test is skipped where there is none."""
    for name in ("libclang_rt.asan-x86_64.so", "libclang_rt.asan.so"):
        command = [clang(), f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if os.path.exists(path):
            return path
    return pytest.skip(f"{clang()} has no AddressSanitizer (Debian's package libclang-rt-dev)")


def compiler(folder: Path, flags: str) -> Path:
    """A compiler that takes flags behind those that it is given."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {clang()} "$@" -fno-openmp {flags}\n')
    path.chmod(0o755)
    return path


def run_the_tests(folder: Path, flags: str, **environment: str) -> None:
    run_tests(folder, str(compiler(folder, flags)), TESTS, LEFT_OUT, **SANITIZERS, **environment)


def test_the_kernels_touch_nothing_but_their_memory_and_have_no_undefined_behaviour(tmp_path: Path) -> None:
    run_the_tests(tmp_path, SANITIZE, LD_PRELOAD=runtime())


def test_the_kernels_as_clang_optimizes_them(tmp_path: Path) -> None:
    run_the_tests(tmp_path, "-O1")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_would_be_found(fault: str, tmp_path: Path) -> None:
    (tmp_path / "faulty.cpp").write_text(FAULTY)
    library = str(tmp_path / "faulty.so")
    command = [str(compiler(tmp_path, SANITIZE)), "-march=native", "-fPIC", "-shared", "faulty.cpp", "-o", library]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = run_script(CALL, library, fault, LD_PRELOAD=runtime(), **SANITIZERS)
    assert done.returncode != 0
    assert FAULTS[fault] in done.stderr
