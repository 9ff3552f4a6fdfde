"""The GPU's matrix multiplication: every tile, decoding, and what is folded in, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import operator
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton")

from qsam2_ao.deploy.kernels.codes import NO_GRID
from qsam2_ao.native import triton_linear
from qsam2_ao.native.cuda import decodable
from qsam2_ao.native.triton_attention import attention_in_parts
from qsam2_ao.native.triton_kernels import patches
from qsam2_ao.native.triton_linear import TILES, Tile, as_eight_bits, choose_tile, linear, pack_weight

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_OPERATIONS = {"shl": operator.lshift, "shr": operator.rshift, "and": operator.and_, "or": operator.or_}


def integers(shape: tuple[int, ...], bits: int) -> Tensor:
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)


def layer(n: int, k: int, bits: int, *, mid_tread: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, their table, and the integers that they stand for; around zero, or with zero in between."""
    codes = integers((n, k), bits)
    table = torch.arange(16) - 2 ** (bits - 1) if mid_tread else 2 * torch.arange(16) - (2**bits - 1)
    values = codes.long() - 128 if bits == 8 else table[codes.long()]
    return pack_weight(codes.to(DEVICE), bits)[0], table.clamp(-128, 127).to(torch.int8).to(DEVICE), values


def product(
    x: Tensor, packed: Tensor, bits: int, table: Tensor, n: int, tile: Tile | None = None, activation: str = "none"
) -> Tensor:
    one, zero = torch.ones(n, device=DEVICE), torch.zeros(n, device=DEVICE)
    out = linear(x.to(DEVICE), packed, bits, table, one, zero, None, activation, torch.float32, *NO_GRID, tile)
    return out.cpu()


def inputs(rows: int, k: int) -> Tensor:
    return (integers((rows, k), 7).int() * 2 - 128).to(torch.int8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("even", [True, False])
def test_every_tile_sums_exactly(bits: int, even: bool) -> None:
    for tile in dict.fromkeys((t.rows, t.columns, t.parts) for t in TILES if t.rows <= 64):
        width = tile[1] * tile[2]
        rows, n, k = (tile[0], width, 256) if even else (tile[0] + 3, width + 7, 100)
        packed, table, values = layer(n, k, bits)
        x = inputs(rows, k)
        assert torch.equal(product(x, packed, bits, table, n, Tile(*tile, warps=4)).long(), x.long() @ values.T), tile


@pytest.mark.parametrize(("n", "width"), [(128, 128), (96, 96), (64, 64)])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_tile_of_large_images(n: int, width: int, bits: int) -> None:
    """More than eight blocks of rows, the last ones incomplete: programs are taken in groups of eight."""
    rows, k = 128 * 100 + 5, 64
    tile = choose_tile(rows, n)
    assert (tile.rows, tile.columns * tile.parts) == (128, width)
    packed, table, values = layer(n, k, bits)
    x = inputs(rows, k)
    assert torch.equal(product(x, packed, bits, table, n).long(), x.long() @ values.T)


@pytest.mark.parametrize("warpgroups", [True, False])
@pytest.mark.parametrize("k", [96, 112, 128, 148])
def test_int8_weights_in_the_steps_of_either_kind_of_tensor_cores(
    k: int, warpgroups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_linear, "has_warpgroups", lambda device: warpgroups)
    packed, table, values = layer(40, k, 8)
    x = inputs(20, k)
    assert torch.equal(product(x, packed, 8, table, 40).long(), x.long() @ values.T)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("mid_tread", [True, False])
def test_weights_kept_as_int8_give_the_same(bits: int, mid_tread: bool) -> None:
    n, k = 50, 228
    packed, table, values = layer(n, k, bits, mid_tread=mid_tread)
    x = inputs(33, k)
    out = product(x, packed, bits, table, n)
    assert torch.equal(out.long(), x.long() @ values.T)
    wide = as_eight_bits(packed, bits, table, k)
    assert wide.dtype == torch.int8
    assert torch.equal(wide[:, :k].long().cpu(), values)
    assert torch.equal(product(x, wide, 8, table, n), out)


@pytest.mark.parametrize("zero_point", [0, 3, 7])
def test_weights_with_zero_elsewhere_become_int8(zero_point: int) -> None:
    codes = integers((20, 64), 4)
    table = (torch.arange(16) - zero_point).to(torch.int8)
    wide, bits = decodable(codes, 4, table)
    assert bits == 8
    assert torch.equal(wide.int() - 128, codes.int() - zero_point)
    assert decodable(codes, 4, (torch.arange(16) - 8).to(torch.int8)) == (codes, 4)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_logic_of_registers_is_the_interpreters(bits: int) -> None:
    """What is written in PTX runs on GPUs alone: its instructions on all bytes, in Python."""
    runs = 8 if bits == 3 else 8 // bits
    for run in range(runs):
        text = triton_linear._logic(bits, run)
        for word in (0x03020100 + 0x04040404 * i for i in range(64)):
            registers = {"$1": word, "$2": word ^ 0x5A5A5A5A if bits == 3 else 0x08080808, "$3": 0x10101010}
            for operation, to, *sources in re.findall(r"(\w+)\.b32 (\S+), (\S+?)(?:, (\S+))?;", text):
                a, b = (registers[s] if s in registers else int(s, 0) for s in sources)
                registers[to] = _OPERATIONS[operation](a, b) & 0xFFFFFFFF
            for byte in range(4):
                packed, other = (registers[name] >> 8 * byte & 255 for name in ("$1", "$2"))
                if bits == 3:
                    code = (packed >> run % 4 * 2 & 3) << 1 | other >> run & 1
                    expected = code << 5 | 0x10
                else:
                    expected = (packed >> run * bits & (1 << bits) - 1) << 8 - bits | other
                assert registers["$0"] >> 8 * byte & 255 == expected, (bits, run)


def test_gelu_is_exact_to_a_millionth() -> None:
    y = torch.linspace(-30, 30, 4096).reshape(64, 64)
    packed, table, _ = layer(64, 64, 8)
    x, ones = torch.zeros(64, 64, dtype=torch.int8, device=DEVICE), torch.ones(64, device=DEVICE)
    for row in y[::8]:
        out = linear(x[:1], packed, 8, table, ones, row.to(DEVICE), None, "gelu", torch.float32, *NO_GRID)
        torch.testing.assert_close(out[0].cpu().double(), F.gelu(row.double()), rtol=1e-6, atol=8e-7)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_codes_differ_from_divided_ones_at_most_at_ties(activation: str) -> None:
    n, k, scale, zero_point = 96, 96, 0.037, 21.0
    packed, table, values = layer(n, k, 4)
    x = inputs(70, k)
    alpha, beta = torch.full((n,), 3e-4), torch.linspace(-3, 3, n)
    arguments = (alpha.to(DEVICE), beta.to(DEVICE), None, activation, torch.uint8, scale, zero_point, 250)
    out = linear(x.to(DEVICE), packed, 4, table, *arguments).cpu().int() + 128
    exact = (x.long() @ values.T).double() * alpha.double() + beta.double()
    steps = (F.gelu(exact) if activation == "gelu" else exact) / scale + zero_point
    differs = out != steps.round().clamp(0, 250)
    assert ((steps - steps.floor() - 0.5).abs()[differs] < 1e-4).all()
    assert differs.double().mean() < 1e-3
    assert out.min() == 0 or activation == "gelu"


def test_patches_are_filled_with_codes_as_they_are_in_memory() -> None:
    image = (integers((1, 6, 6, 3), 8).int() - 128).to(torch.int8)
    out = patches(image.to(DEVICE), 3, 3, 3, 3, 0, 0, 200).cpu()
    assert out.dtype == torch.int8
    assert (out[..., 27:] == 200 - 128).all()
    strided = image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).to(DEVICE)
    assert torch.equal(patches(strided, 3, 3, 3, 3, 0, 0, 200).cpu(), out)


@pytest.mark.parametrize(("queries", "keys", "batch"), [(70, 2100, 1), (5, 31, 2), (64, 4096, 1)])
def test_attention_to_narrow_values_in_parts(queries: int, keys: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(batch, n, 1, c, generator=generator).bfloat16().transpose(1, 2).to(DEVICE)
        for n, c in ((queries, 64), (keys, 64), (keys, 24))
    )
    out = attention_in_parts(q, k, v, 0.3).transpose(1, 2).cpu()
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=0.3).cpu()
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=1e-2)


def test_attention_in_parts_passes_over_keys_of_scores_beyond_float32() -> None:
    """Whole parts of them, whose softmax has no sum."""
    q, k = torch.full((1, 1, 64, 64), 1e20).bfloat16(), torch.zeros(1, 1, 4096, 64).bfloat16()
    k[:, :, :3000] = -1e20
    v = torch.randn(1, 1, 4096, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = attention_in_parts(q.to(DEVICE), k.to(DEVICE), v.to(DEVICE), 0.3).transpose(1, 2).cpu()
    mean = v[:, :, 3000:].float().mean(2, keepdim=True).expand_as(out)
    torch.testing.assert_close(out.float(), mean, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("rows", "n", "width"), [(65536, 288, 96), (65536, 384, 128), (16384, 192, 96), (65536, 112, 128), (16384, 448, 64)]
)
def test_tiles_waste_few_columns(rows: int, n: int, width: int) -> None:
    tile = choose_tile(rows, n)
    assert tile in TILES
    assert tile.columns * tile.parts == width
    assert choose_tile(1024, n).rows == 64, "a small grid gets small tiles"
