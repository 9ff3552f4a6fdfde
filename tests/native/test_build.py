"""Where the kernels cannot be had, and what a compiler that fails says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.native import build, load_kernels, unavailable_reason

needs_kernels = pytest.mark.skipif(unavailable_reason() is not None, reason=str(unavailable_reason()))


def test_other_machines_get_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "arm64")
    assert "not Linux on arm64" in str(unavailable_reason())
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    if build.platform.system() == "Linux" and build.platform.machine() == "x86_64":
        assert "AVX512-VNNI" in str(unavailable_reason())


@needs_kernels
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "install g++ or set CXX" in str(unavailable_reason())
    with pytest.raises(UnsupportedLayerError, match="there is no C"):
        load_kernels()


@needs_kernels
def test_a_compiler_that_fails_leaves_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'unknown option' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UnsupportedLayerError, match=r"broken .*unknown option"):
        build.implement()
    assert not list(tmp_path.rglob("*.so"))


@needs_kernels
def test_each_instruction_set_has_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = set()
    for supported in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        libraries.add(build._library())
    assert len(libraries) == 2


_WITHOUT_BF16 = """
import sys
import pytest, torch
torch.cpu._is_avx512_bf16_supported = lambda: False
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not cuda", sys.argv[1]]))
"""


@needs_kernels
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="All tests of the kernels run without it.")
def test_kernels_without_bf16_instructions() -> None:
    """A process holds one library, so the tests of the kernels run in another one, as on a Cascade Lake."""
    tests = Path(__file__).parent / "test_kernels.py"
    run = subprocess.run([sys.executable, "-c", _WITHOUT_BF16, str(tests)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@needs_kernels
def test_the_library_is_kept_by_its_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = build._library()
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-DOTHER"))
    assert build._library() != kept
    assert build._library().parent == kept.parent
