"""Compile the CPU kernels: at first use, and into wheels by setup.py, which reads this file without the package."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "fma")
X86 = {
    "avx2": ("avx2", "fma"),
    "avx_vnni": ("avx2", "fma", "avx_vnni"),
    "avx512": _AVX512,
    "avx512_bf16": (*_AVX512, "avx512_bf16"),
}
"""What each kind of x86-64 CPUs can do, as Linux names it; compilers leave the line out."""
_NEON = "-march=armv8.2-a+dotprod"
KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {kind: tuple(f"-m{name.replace('_', '')}" for name in features) for kind, features in X86.items()},
    "aarch64": {"neon": (_NEON,), "neon_i8mm": (f"{_NEON}+i8mm",)},
}
"""By architecture the kinds of CPUs that there are kernels for, and what the compiler is told for each."""
SECONDS = 600
"""After which a compiler is given up; it takes a quarter of a minute on a quiet machine."""

# Of torch, the library uses the stable C interface as it was in the oldest torch that pyproject.toml accepts.
_TORCH = "-DTORCH_TARGET_VERSION=0x020b000000000000"
_FLAGS = ("-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", _TORCH)


class CompileError(Exception):
    """A compiler that fails, cannot be run, or takes too long; what it said."""


def why_no_platform() -> str | None:
    """Why there are no kernels for this operating system and architecture; None if there are."""
    if platform.system() != "Linux" or platform.machine() not in KINDS:
        return f"The kernels are for Linux on x86-64 and aarch64, not {platform.system()} on {platform.machine()}."
    return None


def flags(kind: str) -> tuple[str, ...]:
    """What the kernels are compiled with for a kind of CPU of this architecture; nothing special for one without."""
    return (*_FLAGS, *KINDS.get(platform.machine(), {}).get(kind, ()))


def digest(options: tuple[str, ...]) -> str:
    """Of the kernels' sources and of what they are compiled with. A library of others is never loaded."""
    return _digest(SOURCES, options)


@functools.cache
def _digest(sources: Path, options: tuple[str, ...]) -> str:
    found = hashlib.sha256(repr(options).encode())
    for source in sorted(sources.iterdir()):
        found.update(source.read_bytes())
    return found.hexdigest()


def packaged_library(options: tuple[str, ...]) -> Path:
    """Where the library lies in an installed wheel."""
    return SOURCES.parent / f"kernels-{digest(options)[:16]}.so"


def compilers() -> tuple[str, ...]:
    """The compilers to try, in that order: ``CXX`` alone where it is set."""
    if chosen := os.environ.get("CXX", "").split():
        return (" ".join(chosen),) if shutil.which(chosen[0]) else ()
    return tuple(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))


def compile_kernels(compiler: str, options: tuple[str, ...], torch: Path, output: Path) -> None:
    """Compile and link all sources.

    Args:
        compiler: Its command, with arguments.
        options: :func:`flags`.
        torch: The folder of the torch package, whose headers are read.
        output: The library to write.

    Raises:
        CompileError: The compiler failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        objects = {source: str(Path(folder) / f"{source.stem}.o") for source in sorted(SOURCES.glob("*.cpp"))}
        include = ("-isystem", str(torch / "include"))
        _run(compiler, ((*options, *include, "-c", str(source), "-o", to) for source, to in objects.items()))
        # torch exports a few symbols of the C++ library, too, which are no part of its interface.
        libraries = ("-lstdc++", f"-L{torch / 'lib'}", "-ltorch_cpu")
        _run(compiler, [("-shared", "-s", *objects.values(), *libraries, "-o", str(output))])


def seal(library: Path) -> None:
    """Append a digest of the file, behind what the system's loader reads."""
    content = library.read_bytes()
    with open(library, "ab") as file:
        file.write(hashlib.sha256(content).digest())


def is_whole(library: Path) -> bool:
    """Whether a library is there and as it was sealed. One that was cut off would crash the process."""
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return content[-32:] == hashlib.sha256(content[:-32]).digest()


def _run(compiler: str, calls: Iterable[Sequence[str]]) -> None:
    """Run a compiler several times at once; on any error, no process is left."""
    deadline = time.monotonic() + SECONDS
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
                    raise CompileError(
                        f"The C++ compiler {compiler} fails (it must know C++20 and this CPU's instructions, as "
                        f"GCC 11 does): {output.read().decode(errors='replace').strip()[-2000:]}"
                    )
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"The C++ compiler {compiler} takes more than {SECONDS} seconds.") from error
        except OSError as error:
            raise CompileError(f"The C++ compiler {compiler} cannot be run ({error}).") from error
        finally:
            for process in running:
                with suppress(ProcessLookupError):
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
                process.wait()
