"""Load the CPU kernels: those of the wheel, or else those that are compiled for this machine once."""

from __future__ import annotations

import functools
import os
import platform
import threading
from pathlib import Path

import torch

from ..errors import QSAM2Error, UnsupportedLayerError
from ..files import atomic_write
from . import compiler

_LOCK = threading.Lock()
_loaded = False
"""Whether this process has its kernels. Another library would take their place, whichever models they were made for."""
_failed: dict[tuple[Path, tuple[str, ...]], str] = {}
"""Library and compilers -> why they gave no kernels in this process, which does not try them again."""


def why_unfit_cpu() -> str | None:
    """Why this machine's CPU could not run the kernels even with a compiler; None if it could."""
    if (reason := compiler.why_no_platform()) is not None:
        return reason
    if platform.machine() == "aarch64":
        absent_on_arm = "The kernels need a CPU with dot products of int8 (asimddp: Cortex-A76, Neoverse N1 or newer)."
        return None if _cpu_has("asimddp") else absent_on_arm
    if _kept_to() == "default":
        return "The kernels need AVX2, and ATEN_CPU_CAPABILITY=default says to do without."
    absent = ", ".join(name for name in compiler.X86["avx2"] if not _cpu_has(name))
    return f"The kernels need a CPU with AVX2 (Haswell, Zen or newer); this one lacks {absent}." if absent else None


def kind() -> str:
    """The kind of CPU, of those in the compiler's ``KINDS``, whose kernels make the most of this one."""
    if platform.machine() == "aarch64":
        return "neon_i8mm" if _cpu_has("i8mm") else "neon"
    if _kept_to() == "avx2":
        return "avx_vnni" if _keeps_avx_vnni() and _cpu_has("avx_vnni") else "avx2"
    # torch may take AVX-VNNI, which is for 256 bits, for AVX512-VNNI; the kernel of the system does not.
    if not torch.cpu._is_vnni_supported() or not all(map(_cpu_has, compiler.X86["avx512"])):
        return "avx_vnni" if _cpu_has("avx_vnni") else "avx2"
    return "avx512_bf16" if bf16_supported() else "avx512"


def _kept_to() -> str:
    """What torch is told to do with at most, as on an older CPU; empty without."""
    return os.environ.get("ATEN_CPU_CAPABILITY", "").lower()


def _keeps_avx_vnni() -> bool:
    """Whether oneDNN is told to do with AVX-VNNI at most, for which torch has no word of its own."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper().startswith("AVX2_VNNI")


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
    if not compiler.compilers() and not os.path.exists(library):
        return _no_compiler()
    return _failed.get((library, compiler.compilers()))


def bf16_supported() -> bool:
    """Whether this CPU has, and is not told to do without, what multiplies bfloat16 (AVX512-BF16)."""
    if _kept_to() in ("default", "avx2"):
        return False
    return torch.cpu._is_avx512_bf16_supported() and (platform.system() != "Linux" or _cpu_has("avx512_bf16"))


def implement() -> None:
    """Register the kernels, and compile them if no wheel brought them and this machine has not before; once a process.

    What is compiled is kept under ``$XDG_CACHE_HOME/qsam2_ao`` (``~/.cache/qsam2_ao``). A process has one library,
    wherever that folder lies later.

    Raises:
        UnsupportedLayerError: That failed. It is not tried again in this process with the same compilers and folder.
    """
    global _loaded
    with _LOCK:
        if _loaded:
            return
        library = kernel_library()
        attempt = library, compiler.compilers()
        try:
            if attempt in _failed:
                raise UnsupportedLayerError(_failed[attempt])
            if compiler.is_whole(library):
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
    return compiler.digest(_flags())


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


def _no_compiler() -> str:
    chosen = os.environ.get("CXX")
    found = f"the C++ compiler CXX={chosen} is not there" if chosen else "there is no C++ compiler"
    return f"The kernels are compiled at first use, and {found}; install g++ or set CXX."


def kernel_library() -> Path:
    """Where the compiled kernels are: in the package, as wheels bring them, or where they are kept or will be.

    Raises:
        RuntimeError: No wheel brought them, and there is no home folder to keep them in.
    """
    packaged = compiler.packaged_library(_flags())
    if compiler.is_whole(packaged):
        return packaged
    return cache_folder() / f"kernels-{digest()[:16]}-{''.join(platform.libc_ver())}.so"


def cache_folder() -> Path:
    """Where what was compiled or measured on this machine is kept.

    Raises:
        RuntimeError: There is no home folder.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qsam2_ao"


def _flags() -> tuple[str, ...]:
    return compiler.flags(kind())


def _build(library: Path) -> None:
    """Compile with the first compiler whose library loads; only such a library is kept."""
    reasons = []
    for command in compiler.compilers():
        try:
            with atomic_write(library) as temporary:
                compiler.compile_kernels(command, _flags(), Path(torch.__file__).parent, temporary)
                _load(temporary)
                compiler.seal(temporary)
            return
        except (compiler.CompileError, UnsupportedLayerError) as error:
            reasons.append(str(error))
        except (QSAM2Error, OSError) as error:
            raise UnsupportedLayerError(
                f"The kernels are compiled once and kept in {library.parent}, and that failed: {error}. Set "
                "XDG_CACHE_HOME to a folder that can be written."
            ) from error
    raise UnsupportedLayerError(" ".join(reasons) or _no_compiler())


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise UnsupportedLayerError(
            f"The compiled kernels cannot be loaded ({error.__cause__ or error}). Delete {library}, so that they are "
            "compiled for this machine, or set CXX to another compiler."
        ) from error
