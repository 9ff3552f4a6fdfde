"""Arm's kernels under an emulator: products of codes to the last bit, and the tests of all kernels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from arm_kernels import CPUS, CROSS, QEMU, ArmKernels, build_harness, why_no_emulation

from qsam2_ao.deploy.kernels.codes import NO_GRID
from qsam2_ao.deploy.targets import auto_target
from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.native import build, code_offset, compiler, load_kernels, why_no_kernels

needs_emulation = pytest.mark.skipif(why_no_emulation() is not None, reason=str(why_no_emulation()))


@pytest.fixture(scope="module", params=list(CPUS))
def kernels(request: pytest.FixtureRequest) -> Iterator[ArmKernels]:
    if (reason := why_no_emulation()) is not None:
        pytest.skip(reason)
    emulated = ArmKernels(request.param)
    yield emulated
    emulated.close()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sums_of_codes_are_exact(kernels: ArmKernels, bits: int) -> None:
    """Rows, columns and inputs that fill no tile, panel or pair of steps; every int8 value; the largest sums."""
    random = seeded(bits)
    for m, n, k in ((1, 1, 4), (3, 7, 12), (7, 16, 20), (13, 50, 36), (200, 33, 68), (5, 20, 1028), (400, 130, 96)):
        codes = torch.randint(0, 2**bits, (n, k), generator=random, dtype=torch.uint8)
        table = torch.randint(-128, 128, (16,), generator=random).to(torch.int8)
        x = torch.randint(0, 256, (m, k), generator=random, dtype=torch.uint8)
        if k == 1028:
            x[:2], codes[:2], table[0] = 0, 0, -128
        weight, sums = kernels.pack_weight(codes, bits)
        assert torch.equal(sums.long(), codes.long().sum(1))
        out = kernels.linear(
            x, weight, bits, table, torch.ones(n), torch.zeros(n), None, "none", torch.float32, *NO_GRID
        )
        values = codes.long() - 128 if bits == 8 else table.long()[codes.long()]
        assert torch.equal(out, ((x.long() - 128) @ values.T).float())


def test_what_is_folded_into_products(kernels: ArmKernels) -> None:
    random = seeded()
    codes = torch.randint(0, 16, (40, 36), generator=random, dtype=torch.uint8)
    x = torch.randint(0, 256, (9, 36), generator=random, dtype=torch.uint8)
    table = torch.arange(-8, 8, dtype=torch.int8)
    alpha, beta = torch.rand(40, generator=random) * 1e-2, torch.randn(40, generator=random)
    residual = torch.randn(9, 40, generator=random)
    exact = (x.double() - 128) @ (codes.double().T - 8) * alpha.double() + beta.double()
    weight, _ = kernels.pack_weight(codes, 4)
    for activation, function in (("none", lambda y: y), ("gelu", F.gelu), ("relu", F.relu)):
        for added in (None, residual, residual.bfloat16()):
            expected = function(exact) + (0 if added is None else added.double())
            out = kernels.linear(x, weight, 4, table, alpha, beta, added, activation, torch.float32, *NO_GRID)
            torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
            out = kernels.linear(x, weight, 4, table, alpha, beta, added, activation, torch.bfloat16, *NO_GRID)
            torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-5)
    found = kernels.linear(x, weight, 4, table, alpha, beta, None, "none", torch.uint8, 0.05, 30.0, 200)
    steps = exact / 0.05 + 30
    assert ((found.double() - steps).abs() <= 0.5001).logical_or((steps < 0) | (steps > 200)).all()
    assert (found[steps < 0] == 0).all()
    assert (found[steps > 200] == 200).all()


@pytest.mark.skipif(CROSS is None, reason="g++-aarch64-linux-gnu is not installed")
@pytest.mark.parametrize("kind", list(CPUS))
def test_the_operators_around_the_kernels_are_compiled_for_arm(kind: str) -> None:
    """ops.cpp, with the headers of the installed torch; the emulated tests have their own main function."""
    include = Path(torch.__file__).parent / "include"
    flags = (*compiler.flags(kind), *compiler.KINDS["aarch64"][kind], "-Werror", "-fsyntax-only")
    run = subprocess.run(
        [str(CROSS), *flags, "-isystem", str(include), str(compiler.SOURCES / "ops.cpp")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_a_cpu_without_dot_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(build, "_loaded", False)
    monkeypatch.setattr(build, "cpu_flags", lambda: frozenset({"fp", "asimd", "crc32"}))  # Cortex-A53, A72
    assert "asimddp" in str(why_no_kernels())
    with pytest.raises(UnsupportedLayerError, match="need a CPU with dot products of int8"):
        load_kernels()


def test_only_those_who_ask_get_what_was_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(build, "_loaded", True)
    for features, march in (({"asimddp"}, "+dotprod"), ({"asimddp", "i8mm"}, "+i8mm")):
        monkeypatch.setattr(build, "cpu_flags", lambda features=features: frozenset(features))
        assert why_no_kernels() is None
        assert any(flag.startswith("-march=") and flag.endswith(march) for flag in build._flags())
        target, reason = auto_target()
        assert target == "packed"
        assert "never timed on an Arm CPU" in str(reason)
        assert code_offset(torch.device("cpu")) == 128


@needs_emulation
@pytest.mark.parametrize(
    ("kind", "cpu", "fits"),
    [("neon", "cortex-a76", True), ("neon", "cortex-a53", False), ("neon_i8mm", "cortex-a76", False)],
)
def test_the_emulator_has_the_instructions_of_its_cpu_alone(kind: str, cpu: str, fits: bool) -> None:
    call = b"gemm 1 1 4 8 0 -1 0 1 0 255\n" + bytes(64 + 16 + 4 + 4 + 4)
    run = subprocess.run([str(QEMU), "-cpu", cpu, str(build_harness(kind))], input=call, capture_output=True)
    assert (run.returncode == 0) == fits
    assert run.stdout == bytes(4 * fits)


_ON_ARM = """
import sys
sys.path.insert(0, "tests")
import pytest
from arm_kernels import emulate
emulate(sys.argv[1])
sys.exit(pytest.main(["-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", sys.argv[2], *sys.argv[3:]]))
"""
_OF_THE_KERNELS = "not cuda and not refused and not compile"
"""Without what ops.cpp refuses, and torch's own compiler, which would compile for Arm."""


@pytest.mark.slow
@needs_emulation
@pytest.mark.parametrize("kind", list(CPUS))
def test_the_tests_of_all_kernels_pass(kind: str) -> None:
    """In a process that takes itself for one on Arm, layers and lowered models too."""
    here = Path(__file__).parent
    lowered = here.parent / "deploy" / "kernels"
    files = [here / "test_kernels.py", here / "test_int8_scores.py"]
    files += [lowered / f"test_{name}.py" for name in ("rotary", "upscaling", "nonfinite")]
    command = [sys.executable, "-c", _ON_ARM, kind, _OF_THE_KERNELS, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=here.parents[1])
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
