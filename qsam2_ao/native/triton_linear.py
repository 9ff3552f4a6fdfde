"""Int8 matrix multiplication from packed bits on an NVIDIA GPU, in Triton.

Codes of activations are int8 in memory, less 128, as tensor cores multiply them. A byte of packed weights holds codes
that are ``_span`` inputs apart, so that each bit position of a tile of bytes is a tile of codes. Their highest bit is
flipped: shifted to the top of a byte it is then a sign, and one logic operation decodes the four bytes of a register.
"""

# Functions under triton.jit are of Triton's language: their arguments have no types of Python.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
BLOCKS = 100
"""Tiles that keep a large GPU's multiprocessors (108 to 132) busy."""


class Tile(NamedTuple):
    """How much of a result one program computes.

    Attributes:
        rows: Of the result.
        columns: Of each of ``parts``; Triton's are powers of two.
        parts: 3 for tiles of 96 or 192 columns, else 1.
        warps: Of a program.
        stages: Steps that are loaded ahead.
    """

    rows: int
    columns: int
    parts: int = 1
    warps: int = 8
    stages: int = 3


TILES = (
    Tile(128, 128),
    Tile(128, 64, warps=4),
    Tile(128, 32, parts=3, warps=4),
    Tile(128, 64, parts=3),
    Tile(64, 128, warps=4),
    Tile(64, 64, warps=4),
    Tile(64, 32, parts=3, warps=4),
    Tile(16, 64, warps=4),
    Tile(16, 128, warps=4),
)
"""What :func:`choose_tile` chooses from, and what the benchmark of a GPU times for every shape."""


def choose_tile(rows: int, n: int) -> Tile:
    """The tile for a result of ``[rows, n]``: it wastes few columns, and there are enough tiles for a large GPU.

    Example:
        >>> choose_tile(65536, 288)  # three times 96 columns
        Tile(rows=128, columns=32, parts=3, warps=4, stages=3)
    """
    if rows <= 32:
        return Tile(16, 64, warps=4)
    widest = {128: Tile(128, 128), 96: Tile(128, 32, parts=3, warps=4), 64: Tile(128, 64, warps=4)}
    width = min(widest, key=lambda width: (triton.cdiv(n, width) * width, -width))
    if triton.cdiv(rows, 128) * triton.cdiv(n, width) >= BLOCKS:
        return widest[width]
    return Tile(64, 32, parts=3, warps=4) if width == 96 else Tile(64, 64, warps=4)


def pack_weight(codes: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Pack codes by rows.

    Args:
        codes: uint8 ``[N, K]``, K divisible by 4; of 8 bits, around 128.
        bits: 2, 3, 4 or 8. 3 bits are a plane of 2 and a plane of 1.

    Returns:
        uint8 ``[N, bytes]``, int8 of 8 bits, and the sum of each row's codes, int32 ``[N]``.
    """
    sums = codes.sum(1, dtype=torch.int32)
    codes, k = codes ^ (1 << bits - 1), codes.shape[1]
    if bits == 8:
        padding = min(-k % 64, -k % 96)
        return torch.nn.functional.pad(codes, (0, padding)).view(torch.int8), sums
    span = _span(k, bits)
    if bits == 3:
        codes = torch.nn.functional.pad(codes, (0, -k % (8 * span)))
        return torch.cat([_pack(codes >> 1, 2, span), _pack(codes & 1, 1, span)], dim=1), sums
    return _pack(codes, bits, span), sums


def as_eight_bits(weight: Tensor, bits: int, table: Tensor, k: int) -> Tensor:
    """Packed weights of 2 to 4 bits -> the same integers packed at 8 bits, which are multiplied as they are.

    Args:
        weight: Of ``pack_weight``.
        bits: Of a code.
        table: What each code stands for, int8.
        k: Inputs.
    """
    values = table.long()[_codes_in(weight, bits, k).long()]
    return pack_weight((values + 128).to(torch.uint8), 8)[0]


def _codes_in(weight: Tensor, bits: int, k: int) -> Tensor:
    span = _span(k, bits)
    if bits == 3:
        planes = weight.split([weight.shape[1] // 3 * 2, weight.shape[1] // 3], dim=1)
        codes = _unpack(planes[0], 2, span) << 1 | _unpack(planes[1], 1, span)
    else:
        codes = _unpack(weight, bits, span)
    return codes[:, :k] ^ (1 << bits - 1)


def _span(k: int, bits: int) -> int:
    """Inputs between the codes of a byte: 64, or 32 (the least that tensor cores take) where that pads less."""
    if bits == 3:
        return 32  # of 64 the eight tiles of inputs would not fit into shared memory
    return 64 if -k % (512 // bits) == -k % (256 // bits) else 32


def _steps(bits: int, stride: int, span: int, warpgroups: bool) -> tuple[int, int]:
    """Inputs that are multiplied at once, and how often in a step of the loop.

    Hopper's instructions read shared memory, as much as is there. Ampere's read registers, which Triton fills ahead
    byte by byte where there is one product in a step.
    """
    if bits < 8:
        return span, 8 if bits == 3 else 8 // bits
    if warpgroups:
        return next(wide for wide in (128, 64, 32) if stride % wide == 0), 1
    return 32, 2 if stride % 64 == 0 else 3


@functools.cache
def has_warpgroups(device: torch.device) -> bool:
    """Whether tensor cores are those of Hopper and of Blackwell in data centres."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _pack(codes: Tensor, bits: int, span: int) -> Tensor:
    run = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[1] % (run * span)))
    shifts = torch.arange(0, 8, bits, device=codes.device)[:, None]
    return (codes.unflatten(1, (-1, run, span)).int() << shifts).sum(2).to(torch.uint8).flatten(1)


def _unpack(packed: Tensor, bits: int, span: int) -> Tensor:
    shifts = torch.arange(0, 8, bits, device=packed.device)[:, None]
    return (packed.unflatten(1, (-1, 1, span)).int() >> shifts & (1 << bits) - 1).to(torch.uint8).flatten(1)


def linear(
    x: Tensor,
    weight: Tensor,
    bits: int,
    table: Tensor,
    alpha: Tensor,
    beta: Tensor,
    residual: Tensor | None,
    activation: str,
    out_dtype: torch.dtype,
    out_scale: float,
    out_zero_point: float,
    out_max: int,
    tile: Tile | None = None,
) -> Tensor:
    """``act(x w^T alpha + beta) + residual`` of codes ``[..., K]`` int8, as floats or rounded to codes.

    Of fewer than 8 bits, ``table`` must be symmetric (see ``cuda.decodable``). ``out_dtype`` uint8 stands for codes.
    """
    n, k = alpha.shape[0], x.shape[-1]
    rows = x.numel() // k
    codes = out_dtype == torch.uint8
    out = x.new_empty((*x.shape[:-1], n), dtype=torch.int8 if codes else out_dtype)
    if not rows:
        return out
    kept = out if residual is None else residual.contiguous()  # not read if there is none
    tile = tile or choose_tile(rows, n)
    width = tile.columns * tile.parts
    grid = (triton.cdiv(rows, tile.rows) * triton.cdiv(n, width),)
    span, steps = _steps(bits, weight.shape[1], _span(k, bits), has_warpgroups(x.device))
    _linear[grid](
        *(x, weight, table, alpha, beta, kept, out, rows, n, k, weight.shape[1]),
        *(1 / out_scale, out_zero_point, float(out_max)),
        BITS=bits,
        ACTIVATION=activation,
        RESIDUAL=residual is not None,
        CODES=codes,
        BLOCK_M=tile.rows,
        BLOCK_N=tile.columns,
        PARTS=tile.parts,
        SPAN=span,
        STEPS=steps,
        EVEN_M=rows % tile.rows == 0,
        EVEN_N=n % width == 0,
        EVEN_K=k % (span * steps) == 0,
        num_warps=tile.warps,
        num_stages=tile.stages if bits >= 4 else 2,  # at most 99 KB of shared memory, but on Hopper
    )
    return out


@triton.jit
def _linear(
    x,
    weight,
    table,
    alpha,
    beta,
    residual,
    out,
    rows,
    n,
    k,
    stride,
    out_steps,
    out_zero_point,
    out_max,
    BITS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CODES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    STEPS: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    # Programs that run together share rows of x and of the weight: groups of 8 blocks down, then across.
    blocks_m, blocks_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(n, PARTS * BLOCK_N)
    program = tl.program_id(0)
    group = program // (8 * blocks_n)
    height = tl.minimum(blocks_m - group * 8, 8)
    block_m = group * 8 + (program % (8 * blocks_n)) % height
    block_n = (program % (8 * blocks_n)) // height
    m = block_m * BLOCK_M + tl.arange(0, BLOCK_M)
    c = block_n * (PARTS * BLOCK_N) + tl.arange(0, BLOCK_N)
    # A byte decodes to 2^(8 - bits) (code - 2^(bits - 1)), and half of such a step if zero is between two codes.
    factor = 1.0
    fill = tl.full((SPAN, BLOCK_N), 0, tl.int8)
    if BITS < 8:
        step = tl.load(table + 1).to(tl.int32) - tl.load(table).to(tl.int32)
        factor = step.to(tl.float32) / (1 << (8 - BITS))
        fill += ((step - 1) << (7 - BITS)).to(tl.int8)
    i = tl.arange(0, SPAN)
    # Rows and columns past the end are those at the end again, and are not stored.
    row = m if EVEN_M else tl.minimum(m, rows - 1)
    x += row.to(tl.int64)[:, None] * k + i[None, :]
    w0 = _columns(weight, c, n, stride, EVEN_N) + i[:, None]
    w1 = _columns(weight, c + BLOCK_N, n, stride, EVEN_N) + i[:, None]
    w2 = _columns(weight, c + 2 * BLOCK_N, n, stride, EVEN_N) + i[:, None]
    sums0 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    sums1 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    sums2 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, k, STEPS * SPAN):
        for run in tl.static_range(STEPS):
            first = start + run * SPAN
            a = tl.load(x + first) if EVEN_K else tl.load(x + first, first + i[None, :] < k, other=0)
            sums0 = tl.dot(a, _weights(w0, start, run, k, fill, BITS, SPAN), sums0, out_dtype=tl.int32)
            if PARTS == 3:
                sums1 = tl.dot(a, _weights(w1, start, run, k, fill, BITS, SPAN), sums1, out_dtype=tl.int32)
                sums2 = tl.dot(a, _weights(w2, start, run, k, fill, BITS, SPAN), sums2, out_dtype=tl.int32)
    for part in tl.static_range(PARTS):
        sums = sums0 if part == 0 else sums1 if part == 1 else sums2
        at = c + part * BLOCK_N
        _finish(
            *(sums, m, at, factor, alpha, beta, residual, out, rows, n, out_steps, out_zero_point, out_max),
            *(ACTIVATION, RESIDUAL, CODES, EVEN_M, EVEN_N),
        )


@triton.jit
def _columns(weight, c, n, stride, EVEN_N: tl.constexpr):
    column = c if EVEN_N else tl.minimum(c, n - 1)
    return weight + column.to(tl.int64)[None, :] * stride


@triton.constexpr_function
def _logic(bits, run):
    """PTX that decodes four bytes: shift the code to the top, keep its bits, fill in the half step."""
    if bits == 3:
        high, low = 6 - 2 * (run % 4), 5 - run
        shift = f"shl.b32 t, $1, {high}; " + (f"shl.b32 u, $2, {low};" if low >= 0 else f"shr.b32 u, $2, {-low};")
        together = "and.b32 t, t, 0xC0C0C0C0; and.b32 u, u, 0x20202020; or.b32 t, t, u; or.b32 $0, t, $3;"
        return "{ .reg .b32 t, u; " + shift + together + " }"
    mask = 0x01010101 * (256 - (1 << 8 - bits))
    return "{ .reg .b32 t; " + f"shl.b32 t, $1, {8 - bits - run * bits}; and.b32 t, t, {mask}; or.b32 $0, t, $2;" + " }"


@triton.jit
def _weights(weight, start, run: tl.constexpr, k, fill, BITS: tl.constexpr, SPAN: tl.constexpr):
    """The weights of ``SPAN`` inputs, int8 ``[SPAN, BLOCK_N]``, in steps of 2^(8 - bits)."""
    if BITS == 8:
        w = tl.load(weight + start + run * SPAN)
    elif BITS == 3:
        packed = tl.load(weight + start // 4 + run // 4 * SPAN)
        low = tl.load(weight + tl.cdiv(k, 8 * SPAN) * 2 * SPAN + start // 8)
        if _INTERPRETED:
            w = (packed << (6 - run % 4 * 2)) & 0xC0 | (((low >> run) & 1) << 5)
            w = w.to(tl.int8, bitcast=True) | fill
        else:
            asm: tl.constexpr = _logic(BITS, run)
            w = tl.inline_asm_elementwise(asm, "=r,r,r,r", [packed, low, fill], tl.int8, is_pure=True, pack=4)
    else:
        packed = tl.load(weight + start // (8 // BITS))
        if _INTERPRETED:
            w = (packed << (8 - BITS - run * BITS)) & (256 - (1 << (8 - BITS)))
            w = w.to(tl.int8, bitcast=True) | fill
        else:
            logic: tl.constexpr = _logic(BITS, run)
            w = tl.inline_asm_elementwise(logic, "=r,r,r", [packed, fill], tl.int8, is_pure=True, pack=4)
    return w


@triton.jit
def _finish(
    sums,
    m,
    c,
    factor,
    alpha,
    beta,
    residual,
    out,
    rows,
    n,
    out_steps,
    out_zero_point,
    out_max,
    ACTIVATION: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CODES: tl.constexpr,
    EVEN_M: tl.constexpr,
    EVEN_N: tl.constexpr,
):
    """Scale sums of products, do what is folded in, and store."""
    column = c if EVEN_N else tl.minimum(c, n - 1)
    scale = tl.broadcast_to((tl.load(alpha + column) * factor)[None, :], sums.shape)
    y = tl.fma(sums.to(tl.float32), scale, tl.broadcast_to(tl.load(beta + column)[None, :], sums.shape))
    if ACTIVATION == "gelu":
        y = gelu(y)
    elif ACTIVATION == "relu":
        y = tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL)
    at = m.to(tl.int64)[:, None] * n + c[None, :]
    inside = (m[:, None] < rows) & (c[None, :] < n)
    if RESIDUAL:
        if EVEN_M and EVEN_N:
            y += tl.load(residual + at).to(tl.float32)
        else:
            y += tl.load(residual + at, inside, other=0.0).to(tl.float32)
    result = codes_of(y * out_steps + out_zero_point, out_max) if CODES else y.to(out.dtype.element_ty)
    if EVEN_M and EVEN_N:
        tl.store(out + at, result)
    else:
        tl.store(out + at, result, inside)


@triton.jit
def gelu(y):
    """``max(y, 0) - |y| Phi(-|y|)``: the logarithm of the normal distribution is close to a polynomial.

    Off by at most 7e-7, whatever ``y`` is; from 16 on the second term is 0, and infinity stays.
    """
    a = tl.minimum(tl.abs(y), 16.0)
    p = -0.000473175693 * a + 0.00708344344
    p = p * a - 0.0518241376
    p = p * a - 0.459996492
    p = p * a - 1.15078577
    p = p * a - 1.00003792
    return tl.maximum(y, 0.0, propagate_nan=tl.PropagateNan.ALL) - a * tl.exp2(p)


@triton.jit
def codes_of(steps, high):
    """Round to codes from 0 to ``high``, int8 less 128: half to even, as float32 rounds from 2^23 on.

    The lowest byte of 1.5 * 2^23 and an integer is that integer.
    """
    moved = tl.minimum(tl.maximum(steps, 0.0), high) + 12582784.0
    return moved.to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def divided_codes(value, scale, zero_point, high):
    """The codes of floats, equal to the fake-quantizer's."""
    return codes_of(tl.div_rn(value, tl.full(value.shape, scale, tl.float32)) + zero_point, high)


@triton.jit
def rounded(value, scale, zero_point, high, CODES: tl.constexpr):
    """What attention gives: bfloat16, or the codes of that."""
    half = value.to(tl.bfloat16)
    return divided_codes(half.to(tl.float32), scale, zero_point, high) if CODES else half
