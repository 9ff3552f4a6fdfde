"""Where the kernels cannot be had, and what a compiler that fails says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from other_kernels import run_tests
from threads import at_once

from qsam2_ao import coverage_report, load_embedded, load_qsam2, lower_float
from qsam2_ao.deploy import choice
from qsam2_ao.deploy.targets import auto_target
from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.native import build, compiler, fast_float, load_kernels, why_no_kernels, why_unfit_for_kernels
from qsam2_ao.stage import stage_of

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


def test_other_machines_get_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "arm64")
    assert "not Linux on arm64" in str(why_no_kernels())


@needs_kernels
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_loaded", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "install g++ or set CXX" in str(why_no_kernels())
    with pytest.raises(UnsupportedLayerError, match="there is no C"):
        load_kernels()


@needs_kernels
def test_a_compiler_that_fails_leaves_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "_loaded", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'unknown option' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(UnsupportedLayerError, match=r"broken .*unknown option"):
        build.implement()
    assert not list(tmp_path.rglob("*.so"))


def test_the_cpu_is_asked_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch takes AVX-VNNI for AVX512-VNNI on some CPUs."""
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    everything = {"avx2", *compiler.X86["avx512_bf16"]}
    for lacking in ({"avx512_vnni"}, {"avx512f", "avx512bw", "avx512vl", "avx512dq"}, {"avx512dq"}):
        monkeypatch.setattr(build, "cpu_flags", lambda lacking=lacking: everything - lacking | {"avx_vnni"})
        assert build.kind() == "avx_vnni"
        monkeypatch.setattr(build, "cpu_flags", lambda lacking=lacking: everything - lacking)
        assert build.kind() == "avx2"
        assert why_unfit_for_kernels() is None
    monkeypatch.setattr(build, "cpu_flags", lambda: everything - {"avx512_bf16"})
    assert not build.bf16_supported()
    assert build.kind() == "avx512"
    assert fast_float() == torch.float32
    monkeypatch.setattr(build, "cpu_flags", lambda: everything)
    assert build.kind() == "avx512_bf16"
    assert fast_float() == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert build.kind() == "avx2"


CPUINFO = """processor\t: {number}
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Gold 6230 CPU @ 2.10GHz
flags\t\t: fpu vme sse sse2 {flags} arch_capabilities
vmx flags\t: vnmi preemption_timer
bogomips\t: 4200.00

"""


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[Iterable[str]], None]]:
    """A function that gives this machine a CPU of two cores with such flags, as /proc/cpuinfo names them."""
    read = tmp_path / "cpuinfo"

    def has(flags: Iterable[str]) -> None:
        read.write_text("".join(CPUINFO.format(number=i, flags=" ".join(flags)) for i in range(2)))
        build.cpu_flags.cache_clear()

    monkeypatch.setattr(build, "Path", lambda name: read if name == "/proc/cpuinfo" else Path(name))
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    yield has
    build.cpu_flags.cache_clear()


@pytest.mark.parametrize("absent", compiler.X86["avx2"])
def test_a_cpu_without_one_feature_takes_the_next_target(
    absent: str, cpuinfo: Callable[[Iterable[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason names the feature."""
    cpuinfo(compiler.X86["avx2"])
    assert why_unfit_for_kernels() is None
    cpuinfo(name for name in compiler.X86["avx2"] if name != absent)
    reason = str(why_unfit_for_kernels())
    assert reason.endswith(f"this one lacks {absent}.")
    assert why_no_kernels() == reason
    for why_no_onednn, target in ((None, "onednn"), ("No AVX2.", "packed")):
        monkeypatch.setattr(choice, "why_no_onednn", lambda device, why=why_no_onednn: why)
        assert auto_target() == (target, reason)
    with pytest.raises(UnsupportedLayerError, match=re.escape(reason)):
        load_kernels()


@pytest.mark.parametrize("absent", compiler.X86["avx512"])
def test_a_cpu_without_one_feature_of_avx512_takes_the_kernels_for_avx2(
    absent: str, cpuinfo: Callable[[Iterable[str]], None]
) -> None:
    able = {*compiler.X86["avx2"], *compiler.X86["avx512"]}
    cpuinfo(able)
    assert build.kind() == "avx512"
    cpuinfo(able - {absent})
    assert (why_unfit_for_kernels() is None) == (absent != "fma")
    assert build.kind() == "avx2"


def test_torch_may_be_told_to_do_without_instructions(
    cpuinfo: Callable[[Iterable[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo({*compiler.X86["avx2"], *compiler.X86["avx512"]})
    for chosen, kind in (("avx2", "avx2"), ("AVX2", "avx2"), ("avx512", "avx512")):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", chosen)
        assert why_unfit_for_kernels() is None
        assert build.kind() == kind
    cpuinfo(compiler.X86["avx_vnni"])
    for chosen, kind in (("avx2", "avx2"), ("avx512", "avx_vnni")):
        monkeypatch.setenv("ATEN_CPU_CAPABILITY", chosen)
        assert build.kind() == kind
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2_vnni")
    assert build.kind() == "avx_vnni"
    cpuinfo(compiler.X86["avx2"])
    assert build.kind() == "avx2"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "DEFAULT")
    assert "ATEN_CPU_CAPABILITY=default says to do without" in str(why_no_kernels())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Kernels of one line, which compile in no time, and no cache."""
    if why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "one.cpp").write_text('extern "C" int one() { return 1; }\n')
    monkeypatch.setattr(compiler, "SOURCES", tmp_path / "csrc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "_loaded", False)
    monkeypatch.setattr(build, "_failed", {})
    return tmp_path


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_threads_compile_once(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    log = small / "log"
    monkeypatch.setenv("CXX", str(script(small / "counting", f'echo x >> {log}\nexec {compiler} "$@"')))
    at_once(*[build.implement] * 4)
    assert log.read_text().count("x") == 2  # compiled, linked
    assert why_no_kernels() is None


def test_processes_may_compile_at_once(small: Path) -> None:
    library = build.kernel_library()
    at_once(*[partial(build._build, library)] * 3)  # without the lock, which is of one process
    assert compiler.is_whole(library)
    assert list(library.parent.iterdir()) == [library]


def test_an_interruption_leaves_no_compiler_and_no_file(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if timeout is not None:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait()

    monkeypatch.setenv("CXX", str(script(small / "slow", "sleep 600")))
    monkeypatch.setattr(compiler.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.implement()
    assert [process.returncode for process in started] == [-9]
    assert not list(small.rglob("*.so"))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-1], lambda b: b"", lambda b: b[::-1]])
def test_a_damaged_library_is_compiled_again(
    small: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    build.implement()
    library = build.kernel_library()
    whole = library.read_bytes()
    library.unlink()  # this process has it mapped
    library.write_bytes(damage(whole))
    monkeypatch.setattr(build, "_loaded", False)
    build.implement()
    assert library.read_bytes() == whole
    assert list(library.parent.iterdir()) == [library]


def test_the_next_compiler_is_tried(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++") or shutil.which("c++")
    (small / "bin").mkdir()
    script(small / "bin" / "c++", "exit 1")
    script(small / "bin" / "g++", f'exec {compiler} "$@"')
    monkeypatch.setenv("PATH", f"{small / 'bin'}:{os.environ['PATH']}")
    build.implement()
    assert build.kernel_library().exists()


_FAILING = {
    "exits": ("echo no such option >&2; exit 1", "no such option"),
    "is killed": ("kill -9 $$", "fails"),
    "hangs": ("sleep 600 & sleep 600", "takes more than 1 seconds"),
    "writes nothing": ("exit 0", "cannot be loaded"),
    "writes rubbish": ('for last; do :; done; echo rubbish > "$last"', "cannot be loaded"),
}


@pytest.mark.slow
@pytest.mark.parametrize("failing", _FAILING)
def test_auto_goes_on_where_the_compiler_fails(
    failing: str, small: Path, monkeypatch: pytest.MonkeyPatch, packed_file: Path
) -> None:
    text, said = _FAILING[failing]
    monkeypatch.setattr(compiler, "SECONDS", 1)
    monkeypatch.setenv("CXX", str(script(small / "failing", f"echo x >> {small / 'log'}\n{text}")))
    _check_goes_on(packed_file, said)
    calls = (small / "log").read_text()
    _check_goes_on(packed_file, said)
    assert (small / "log").read_text() == calls, "the compiler was tried again"
    assert not list(small.rglob("*.so"))


def test_auto_goes_on_with_a_library_that_needs_another(
    small: Path, monkeypatch: pytest.MonkeyPatch, packed_file: Path
) -> None:
    (small / "csrc" / "one.cpp").write_text("void elsewhere();\nvoid (*used)() = elsewhere;\n")
    _check_goes_on(packed_file, "cannot be loaded .*set CXX to another")
    assert not list(small.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "device", "homeless"])
def test_auto_goes_on_where_nothing_can_be_kept(
    place: str, small: Path, monkeypatch: pytest.MonkeyPatch, packed_file: Path
) -> None:
    (small / "file").touch()
    if place == "homeless":

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(build.Path, "home", home)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(small / "file" if place == "file" else "/dev/null"))
    _check_goes_on(packed_file, "XDG_CACHE_HOME")


def _check_goes_on(packed_file: Path, said: str) -> None:
    """A model for "auto" takes the next target, with one warning and the reason; "int8" raises it."""
    with pytest.warns(UserWarning, match=said) as caught:
        model: Any = load_qsam2(packed_file, target="auto")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    taken = {target for target, _ in stage_of(model).targets.values()}
    assert taken <= {"onednn", "dequantized"}, "whichever was faster for this small model, and for parts of its decoder"
    reasons = [row.reason for row in coverage_report(model).layers if row.target in taken]
    assert any(re.search(said, reason) for reason in reasons)
    assert all(re.search(f"{said}|slower in this part", reason) for reason in reasons)
    with pytest.raises(UnsupportedLayerError, match=said):
        load_qsam2(packed_file, target="int8")
    with pytest.raises(UnsupportedLayerError, match=said):
        lower_float(load_embedded())


@needs_kernels
def test_a_process_keeps_the_kernels_that_it_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Others would take the place of those that its models run on: from another folder, or of other sources."""
    load_kernels()
    folder = tmp_path / "qsam2_ao"
    folder.mkdir()
    library = folder / "kernels-another.so"
    library.write_bytes(b"rubbish")
    compiler.seal(library)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for of_what in (lambda: "another", build.digest):
        monkeypatch.setattr(build, "digest", of_what)
        assert why_no_kernels() is None
        load_kernels()
    assert [file.name for file in folder.iterdir()] == ["kernels-another.so"]


@needs_kernels
def test_each_instruction_set_has_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = set()
    for kind in compiler.X86:
        monkeypatch.setattr(build, "kind", lambda kind=kind: kind)
        libraries.add(build.kernel_library())
    assert len(libraries) == len(compiler.X86)


@pytest.mark.slow
@pytest.mark.skipif(build.kind() == "avx2", reason="All tests of the kernels run on those for AVX2.")
@needs_kernels  # nearest to the function: its reason is told first
def test_the_kernels_for_avx2() -> None:
    """A process holds one library, so the tests of the kernels run in another one, as on older CPUs."""
    tests = [str(Path(__file__).with_name(name)) for name in ("test_kernels.py", "test_ops.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not cuda"]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "avx2"}
    run = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(build.kind() not in compiler.X86, reason="These kernels are for x86-64.")
@pytest.mark.skipif(build.kind() == "avx_vnni", reason="All tests of the kernels run on those for AVX-VNNI.")
@needs_kernels  # nearest to the function: its reason is told first
def test_the_kernels_for_avx_vnni(tmp_path: Path) -> None:
    """With the instruction emulated where the CPU has none."""
    command, kept_to = compiler.compilers()[0], "AVX2_VNNI"
    if "avx_vnni" not in build.cpu_flags():
        command, kept_to = f"{command} -include {Path(__file__).with_name('avx_vnni.h')}", "AVX2"
    tests = ["native/test_kernels.py", "native/test_int8_scores.py"]
    run_tests(tmp_path, command, tests, "not cuda", ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA=kept_to)


_WITHOUT_BF16 = """
import sys
import pytest, torch
torch.cpu._is_avx512_bf16_supported = lambda: False
sys.exit(pytest.main(["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not cuda", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="All tests of the kernels run without it.")
@needs_kernels  # nearest to the function: its reason is told first
def test_kernels_without_bf16_instructions() -> None:
    """A process holds one library, so the tests of the kernels run in another one, as on a Cascade Lake."""
    tests = Path(__file__).parent / "test_kernels.py"
    run = subprocess.run([sys.executable, "-c", _WITHOUT_BF16, str(tests)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@needs_kernels
def test_the_library_is_kept_by_its_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = build.kernel_library()
    monkeypatch.setattr(compiler, "_FLAGS", (*compiler._FLAGS, "-DOTHER"))
    assert build.kernel_library() != kept
    assert build.kernel_library().parent == kept.parent
