"""Compile the CPU kernels for this machine once, and load them."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch

from ..errors import QSAM2Error, UnsupportedLayerError
from ..files import atomic_write

_SOURCES = Path(__file__).parent / "csrc"
_ISA = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "fma")
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fopenmp", "-Wall", *(f"-m{name}" for name in _ISA))
_SECONDS = 600
"""After which a compiler is given up; it takes half a minute on a quiet machine."""

_LOCK = threading.Lock()
_loaded = False
"""Whether this process has its kernels. Another library would take their place, whichever models they were made for."""
_failed: dict[tuple[Path, tuple[str, ...]], str] = {}
"""Library and compilers -> why they gave no kernels in this process, which does not try them again."""


def why_unfit_cpu() -> str | None:
    """Why this machine's CPU could not run the kernels even with a compiler; None if it could."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"The kernels are for Linux on x86-64, not {platform.system()} on {platform.machine()}."
    # torch may take AVX-VNNI, which is for 256 bits, for AVX512-VNNI; the kernel of the system does not.
    absent = [name for name in _ISA if not _cpu_has(name.replace("avx512vnni", "avx512_vnni"))]
    if absent or not torch.cpu._is_vnni_supported():
        detail = f"; this one lacks {', '.join(absent)}" if absent else ""
        return f"The kernels need a CPU with AVX512-VNNI (Cascade Lake, Zen 4 or newer){detail}."
    # How torch is told to run as on an older CPU.
    if (chosen := os.environ.get("ATEN_CPU_CAPABILITY", "")).lower() in ("default", "avx2"):
        return f"The kernels need AVX512-VNNI, and ATEN_CPU_CAPABILITY={chosen} says to do without."
    return None


def why_no_cpu_kernels() -> str | None:
    """Why this machine's CPU cannot run the kernels, as far as is known without compiling them; None if it can."""
    if (reason := why_unfit_cpu()) is not None:
        return reason
    if _loaded:
        return None
    try:
        library = kernel_library()
    except RuntimeError as error:
        return f"The kernels are compiled once and kept, and there is no folder for them ({error}); set XDG_CACHE_HOME."
    if not _compilers() and not os.path.exists(library):
        return _no_compiler()
    return _failed.get((library, _compilers()))


def bf16_supported() -> bool:
    """Whether the CPU multiplies bfloat16 (AVX512-BF16)."""
    return torch.cpu._is_avx512_bf16_supported() and (platform.system() != "Linux" or _cpu_has("avx512_bf16"))


def implement() -> None:
    """Compile the kernels, unless that was done on this machine before, and register them; once per process.

    The library is kept under ``$XDG_CACHE_HOME/qsam2_ao`` (``~/.cache/qsam2_ao``). A process has one, wherever that
    folder lies later.

    Raises:
        UnsupportedLayerError: That failed. It is not tried again in this process with the same compilers and folder.
    """
    global _loaded
    with _LOCK:
        if _loaded:
            return
        library = kernel_library()
        attempt = library, _compilers()
        try:
            if attempt in _failed:
                raise UnsupportedLayerError(_failed[attempt])
            if _is_whole(library):
                _load(library)
            else:
                _build(library)
        except UnsupportedLayerError as error:
            _failed[attempt] = str(error)
            raise
        _loaded = True


def is_loaded() -> bool:
    """Whether this process has the kernels of this machine's CPU."""
    return bool(_loaded)


def digest() -> str:
    """Of the kernels' sources, and of what they are compiled with and for here."""
    return _digest(_SOURCES, _flags())


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    # "flags" on x86-64, "Features" on Arm.
    found = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(found, ()))


def _cpu_has(name: str) -> bool:
    return name in cpu_flags()


def _compilers() -> tuple[str, ...]:
    """The compilers to try, in that order: ``CXX`` alone where it is set."""
    if chosen := os.environ.get("CXX", "").split():
        return (" ".join(chosen),) if shutil.which(chosen[0]) else ()
    return tuple(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))


def _no_compiler() -> str:
    chosen = os.environ.get("CXX")
    found = f"the C++ compiler CXX={chosen} is not there" if chosen else "there is no C++ compiler"
    return f"The kernels are compiled at first use, and {found}; install g++ or set CXX."


def kernel_library() -> Path:
    """Where the compiled kernels are kept, or will be."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "qsam2_ao" / f"kernels-{digest()[:16]}.so"


def _flags() -> tuple[str, ...]:
    """The compiler's, with the instructions that multiply bfloat16 where the CPU has them."""
    return (*_FLAGS, "-mavx512bf16") if bf16_supported() else _FLAGS


@functools.cache
def _digest(sources: Path, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((torch.__version__, platform.libc_ver(), flags)).encode())
    for source in sorted(sources.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _build(library: Path) -> None:
    """Compile with the first compiler whose library loads; only such a library is kept."""
    reasons = []
    for compiler in _compilers():
        try:
            with atomic_write(library) as temporary:
                _compile(compiler, temporary)
                seal = _seal(temporary.read_bytes())
                _load(temporary)
                # Behind what the system's loader reads. A file that was cut off would crash the process.
                with open(temporary, "ab") as file:
                    file.write(seal)
            return
        except UnsupportedLayerError as error:
            reasons.append(str(error))
        except (QSAM2Error, OSError) as error:
            raise UnsupportedLayerError(
                f"The kernels are compiled once and kept in {library.parent}, and that failed: {error}. Set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    raise UnsupportedLayerError(" ".join(reasons) or _no_compiler())


def _seal(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return content[-32:] == _seal(content[:-32])


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise UnsupportedLayerError(
            f"The compiled kernels cannot be loaded ({error.__cause__ or error}). Compilers that link another OpenMP "
            f"than torch's, as clang does, make such libraries: set CXX to g++; or delete {library.parent}."
        ) from error


def _compile(compiler: str, output: Path) -> None:
    root = Path(torch.__file__).parent
    include = ("-isystem", str(root / "include"), "-isystem", str(root / "include/torch/csrc/api/include"))
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"
    with tempfile.TemporaryDirectory() as folder:
        objects = {source: str(Path(folder) / f"{source.stem}.o") for source in sorted(_SOURCES.glob("*.cpp"))}
        _run(compiler, ((*_flags(), abi, *include, "-c", str(source), "-o", to) for source, to in objects.items()))
        # Linked without -fopenmp: the symbols are those of torch's runtime; a second one would have its own threads.
        libraries = (f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu")
        _run(compiler, [("-shared", *objects.values(), *libraries, "-o", str(output))])


def _run(compiler: str, calls: Iterable[Sequence[str]]) -> None:
    """Run a compiler several times at once; on any error, no process is left."""
    deadline = time.monotonic() + _SECONDS
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        try:
            outputs = []
            for arguments in calls:
                # A file: whoever inherits a pipe from the compiler could keep it open for ever.
                outputs.append(stack.enter_context(tempfile.TemporaryFile()))
                command = (*compiler.split(), *arguments)
                running.append(
                    subprocess.Popen(command, stdout=outputs[-1], stderr=subprocess.STDOUT, start_new_session=True)
                )
            for process, output in zip(running, outputs, strict=True):
                if process.wait(max(0.0, deadline - time.monotonic())):
                    output.seek(0)
                    raise UnsupportedLayerError(
                        f"The C++ compiler {compiler} fails (it must know AVX512-VNNI and AVX512-BF16, as GCC 10 "
                        f"does): {output.read().decode(errors='replace').strip()[-2000:]}"
                    )
        except subprocess.TimeoutExpired as error:
            raise UnsupportedLayerError(f"The C++ compiler {compiler} takes more than {_SECONDS} seconds.") from error
        except OSError as error:
            raise UnsupportedLayerError(f"The C++ compiler {compiler} cannot be run ({error}).") from error
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
