"""Compile the CPU kernels for this machine once, and load them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..errors import UnsupportedLayerError
from ..files import atomic_write

_SOURCES = Path(__file__).parent / "csrc"
_ISA = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma")
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-Wall", *(f"-m{name}" for name in _ISA))


def cpu_unavailable_reason() -> str | None:
    """Why this machine's CPU cannot run the kernels; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"The kernels are for Linux on x86-64, not {platform.system()} on {platform.machine()}."
    if not torch.cpu._is_vnni_supported():
        return "The kernels need a CPU with AVX512-VNNI (Cascade Lake, Zen 4 or newer)."
    if not _library().exists() and _compiler() is None:
        return "The kernels are compiled at first use, and there is no C++ compiler; install g++ or set CXX."
    return None


def implement() -> None:
    """Compile the kernels, unless that was done on this machine before, and register them; once per process.

    The library is kept under ``$XDG_CACHE_HOME/qsam2_ao`` (``~/.cache/qsam2_ao``).
    """
    library = _library()
    if not library.exists():
        _build(library)
    torch.ops.load_library(str(library))


def _compiler() -> str | None:
    names = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    return next(filter(None, map(shutil.which, names)), None)


def _library() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qsam2_ao" / f"kernels-{_digest(_flags())[:16]}.so"


def _flags() -> tuple[str, ...]:
    """The compiler's, with the instructions that multiply bfloat16 where the CPU has them."""
    return (*_FLAGS, "-mavx512bf16") if torch.cpu._is_avx512_bf16_supported() else _FLAGS


@functools.cache
def _digest(flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((torch.__version__, flags)).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _build(library: Path) -> None:
    root = Path(torch.__file__).parent
    include = ("-isystem", str(root / "include"), "-isystem", str(root / "include/torch/csrc/api/include"))
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    with atomic_write(library) as temporary, tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        sources = sorted(_SOURCES.glob("*.cpp"))
        objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
        commands = [
            (*_flags(), abi, *include, "-c", str(source), "-o", target)
            for source, target in zip(sources, objects, strict=True)
        ]
        list(pool.map(_compile, commands))
        # Linked without -fopenmp: the symbols are those of torch's runtime; a second one would have its own threads.
        _compile(("-shared", *objects, f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(temporary)))


def _compile(arguments: tuple[str, ...]) -> None:
    compiler = _compiler()
    assert compiler is not None  # by unavailable_reason
    run = subprocess.run((compiler, *arguments), capture_output=True, text=True)
    if run.returncode:
        raise UnsupportedLayerError(
            f"cannot compile the int8 kernels with {compiler} (it must know AVX512-VNNI and AVX512-BF16, "
            f"as GCC 10 does): {run.stderr.strip()[-2000:]}"
        )
