"""The CPU kernels as they run on Arm: compiled for it, and run by an emulator (QEMU) behind a pipe.

torch is not there for the emulated CPU, so what ops.cpp does around the kernels is done here.
"""

from __future__ import annotations

import functools
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qsam2_ao.deploy.kernels.codes import NO_GRID
from qsam2_ao.native import compiler

QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CROSS = shutil.which("aarch64-linux-gnu-g++")
CPUS = {"neon": "cortex-a76", "neon_i8mm": "max"}
"""By the kind of kernels a CPU of QEMU's (7.2 knows no smaller one with i8mm)."""

_HARNESS = Path(__file__).parent / "native" / "arm" / "harness.cpp"
_OPTIMIZE = "-O1"  # 4 seconds instead of a minute
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.uint8: 2}
_ACTIVATIONS = {"none": 0, "gelu": 1, "relu": 2}


def why_no_emulation() -> str | None:
    """What is missing to run the kernels of Arm here."""
    if QEMU is None or CROSS is None:
        return "Arm's kernels are tested with qemu-user-static and g++-aarch64-linux-gnu, which are not installed."
    return None


@functools.cache
def build_harness(kind: str) -> Path:
    """Compile the kernels of a kind with a main function; once a process."""
    harness = Path(tempfile.mkdtemp(prefix="arm-kernels-")) / "harness"
    flags = (_OPTIMIZE, "-std=c++20", "-Wall", "-Werror", "-static", f"-I{compiler.SOURCES}")
    command = (str(CROSS), *flags, *compiler.KINDS["aarch64"][kind], str(_HARNESS), "-o", str(harness))
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return harness


class ArmKernels:
    """The operators of ``torch.ops.qsam2`` on an emulated CPU, taking and returning tensors of this one."""

    def __init__(self, kind: str) -> None:
        harness = build_harness(kind)
        self._process = subprocess.Popen(
            [str(QEMU), "-cpu", CPUS[kind], str(harness)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def close(self) -> None:
        """End the emulator."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(10) == 0

    def _call(self, line: tuple[Any, ...], inputs: list[Tensor], dtype: torch.dtype, shape: Any) -> Tensor:
        self._send(line, inputs)
        return self._answer(dtype, shape)

    def _send(self, line: tuple[Any, ...], inputs: list[Tensor]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(" ".join(str(number) for number in line).encode() + b"\n")
        for tensor in inputs:
            stdin.write(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        stdin.flush()

    def _answer(self, dtype: torch.dtype, shape: Any) -> Tensor:
        stdout = self._process.stdout
        assert stdout is not None
        out = torch.empty(shape, dtype=dtype)
        read = bytearray(stdout.read(out.numel() * out.element_size()))
        assert len(read) == out.numel() * out.element_size(), "the kernels ended early"
        return torch.frombuffer(read, dtype=dtype).reshape(shape) if read else out

    def pack_weight(self, codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        n, k = codes.shape
        vectors = -(-n // 16)
        registers = k // 4  # of each panel, which are one vector wide
        groups = {2: -(-registers // 4) * 64, 3: -(-registers // 4) * 96, 4: -(-registers // 2) * 64}
        self._send(("pack", n, k, bits), [codes])
        sums = self._answer(torch.int32, n)
        return self._answer(torch.uint8, vectors * groups.get(bits, registers * 64)), sums

    def linear(
        self, x: Tensor, weight: Tensor, bits: int, table: Tensor, alpha: Tensor, beta: Tensor, residual: Tensor | None,
        activation: str, out_dtype: torch.dtype, out_scale: float, out_zero_point: float, out_max: int,
    ) -> Tensor:  # fmt: skip
        k, n = x.shape[-1], alpha.shape[0]
        kind = -1 if residual is None else _KINDS[residual.dtype]
        line = ("gemm", x.numel() // k, n, k, bits, _ACTIVATIONS[activation], kind, _KINDS[out_dtype])
        inputs = [weight, table, alpha, beta, x, *([] if residual is None else [residual])]
        return self._call((*line, out_scale, out_zero_point, out_max), inputs, out_dtype, (*x.shape[:-1], n))

    def quantize(self, x: Tensor, scale: float, zero_point: float, max: int) -> Tensor:
        line = ("quantize", _KINDS[x.dtype], x.numel(), scale, zero_point, max)
        out = torch.empty_like(x if x.is_contiguous() or x.dim() < 2 else x.clone(), dtype=torch.uint8)
        return out.copy_(self._call(line, [x], torch.uint8, x.shape))

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, scale: float,
        zero_point: float, max: int,
    ) -> Tensor:  # fmt: skip
        n = x.shape[-1]
        line = ("layer_norm", _KINDS[x.dtype], x.numel() // n, n, eps, _KINDS[out_dtype], scale, zero_point, max)
        return self._call(line, [x, weight, bias], out_dtype, x.shape)

    def patches(self, x: Tensor, kh: int, kw: int, sh: int, sw: int, ph: int, pw: int, fill: int) -> Tensor:
        """It has no kernel: ops.cpp copies."""
        padded = F.pad(x, (0, 0, pw, pw, ph, ph), value=fill)
        found = padded.unfold(1, kh, sh).unfold(2, kw, sw).permute(0, 1, 2, 4, 5, 3).flatten(3)
        return F.pad(found, (0, -found.shape[-1] % 4), value=fill)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, int8_scores: bool = False,
        out_dtype: torch.dtype = torch.bfloat16, *grid: float,
    ) -> Tensor:  # fmt: skip
        batch, heads, queries, d = q.shape
        line = ("attention", batch, heads, queries, k.shape[2], d, v.shape[3], scale, int(int8_scores))
        line = (*line, _KINDS[out_dtype], *grid, *NO_GRID[len(grid) :])
        return self._call(line, [q, k, v], out_dtype, (batch, queries, heads, v.shape[3]))

    def window_attention(
        self, qkv: Tensor, pad: Tensor, heads: int, window: int, stride: int, out_dtype: torch.dtype = torch.bfloat16,
        *grid: float,
    ) -> Tensor:  # fmt: skip
        batch, h, w, channels = qkv.shape
        d = channels // 3 // heads
        line = ("window_attention", batch, h, w, heads, d, window, stride, d**-0.5, _KINDS[out_dtype])
        line = (*line, *grid, *NO_GRID[len(grid) :])
        return self._call(line, [qkv, pad], out_dtype, (batch, h // stride, w // stride, heads * d))

    def rotate(self, x: Tensor, frequencies: Tensor, rotated: int) -> Tensor:
        line = ("rotate", _KINDS[x.dtype], *x.shape, frequencies.shape[0], rotated)
        return self._call(line, [x, frequencies], torch.bfloat16, x.shape)

    def pixels(self, x: Tensor, bias: Tensor, stride: int, out_dtype: torch.dtype) -> Tensor:
        batch, h, w, _ = x.shape
        line = ("pixels", _KINDS[x.dtype], batch, h, w, stride, bias.numel(), _KINDS[out_dtype])
        return self._call(line, [x, bias], out_dtype, (batch, h * stride, w * stride, bias.numel()))

    def gelu_planes(self, x: Tensor, out_dtype: torch.dtype) -> Tensor:
        batch, channels, h, w = x.shape
        planes = not x.is_contiguous(memory_format=torch.channels_last)
        line = ("gelu_planes", _KINDS[x.dtype], int(planes), batch, h * w, channels, _KINDS[out_dtype])
        dense = x if planes else x.permute(0, 2, 3, 1)
        return self._call(line, [dense], out_dtype, x.shape)


def emulate(kind: str) -> None:
    """Have this process take itself for one on Arm: ``torch.ops.qsam2`` runs on the emulated CPU, for good."""
    from qsam2_ao.native import build, ops  # noqa: F401 - ops declares the operators

    kernels = ArmKernels(kind)
    library = torch.library.Library("qsam2", "IMPL", "CPU")
    for name in (
        *("pack_weight", "linear", "quantize", "layer_norm", "patches", "attention", "window_attention", "rotate"),
        *("pixels", "gelu_planes"),
    ):
        library.impl(name, getattr(kernels, name))
    _LIBRARIES.append(library)
    platform.machine = lambda: "aarch64"
    build.cpu_flags = lambda: frozenset({"asimddp", *(["i8mm"] if kind == "neon_i8mm" else [])})
    build._loaded = True


_LIBRARIES: list[torch.library.Library] = []
