"""Each kernel against float64 or torch's own operators, over sizes that do not divide and every fused piece.

Those for a GPU run on one where there is one, and in Triton's interpreter (see tests/conftest.py) where there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_inputs import attention_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

from qsam2_ao.native import code_offset, load_kernels, why_no_kernels
from qsam2_ao.quantizers.affine import quantize_affine

needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))


@dataclass(frozen=True)
class Ops:
    """The operators on one kind of device, taking and returning tensors of the CPU, with codes from 0."""

    device: str
    interpreted: bool = False

    @property
    def offset(self) -> int:
        return code_offset(torch.device(self.device))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            first, *rest = arguments
            if self.device == "cuda" and name in ("linear", "patches"):
                first = (first.int() - 128).to(torch.int8)
            if self.interpreted:
                from qsam2_ao.native import cuda

                out = cuda.kernels()[name](first, *rest)
            else:
                there = [a.to(self.device) if isinstance(a, Tensor) else a for a in (first, *rest)]
                out = tree_map(Tensor.cpu, getattr(torch.ops.qsam2, name)(*there))
            if isinstance(out, Tensor) and out.dtype == torch.int8:
                return (out.int() + 128).to(torch.uint8)
            return out

        return call


@pytest.fixture(scope="module", params=["cpu", "cuda"])
def ops(request: pytest.FixtureRequest) -> Ops:
    if request.param == "cpu" or torch.cuda.is_available():
        device = torch.device(request.param)
        if (reason := why_no_kernels(device)) is not None:
            pytest.skip(reason)
        load_kernels(device)
        return Ops(request.param)
    pytest.importorskip("triton")
    return Ops("cuda", interpreted=True)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(ops: Ops, n: int, k: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, their table, and the integers that they stand for."""
    codes = torch.randint(0, 2**bits, (n, k), generator=seeded(), dtype=torch.uint8)
    table = (2 * torch.arange(16) - (2**bits - 1)).clamp(-128, 127).to(torch.int8)
    values = codes.long() - 128 if bits == 8 else 2 * codes.long() - (2**bits - 1)
    return ops.pack_weight(codes, bits)[0], table, values


def linear(ops: Ops, x: Tensor, n: int, bits: int, **changes: object) -> tuple[Tensor, Tensor]:
    """The kernel's result in float32, and float64's of the same codes."""
    packed, table, values = weight(ops, n, x.shape[1], bits)
    alpha, beta = torch.rand(n, generator=seeded(1)) * 1e-3, torch.randn(n, generator=seeded(2))
    fused = {"residual": None, "activation": "none", "dtype": torch.float32, "grid": (1.0, 0.0, 255), **changes}
    out = ops.linear(
        *(x, packed, bits, table, alpha, beta, fused["residual"], fused["activation"], fused["dtype"], *fused["grid"])
    )
    exact = ((x.long() - ops.offset) @ values.T).double() * alpha.double() + beta.double()
    return out, exact


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 400),
    n=st.integers(1, 150),
    steps=st.integers(1, 60),
    bits=st.sampled_from([2, 3, 4, 8]),
    seed=st.integers(0, 99),
)
def test_linear_sums_codes_exactly(ops: Ops, rows: int, n: int, steps: int, bits: int, seed: int) -> None:
    x = torch.randint(0, 256, (rows, 4 * steps), generator=seeded(seed), dtype=torch.uint8)
    out, exact = linear(ops, x, n, bits)
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 150), steps=st.integers(1, 60), bits=st.sampled_from([2, 3, 4, 8]))
def test_packing_sums_the_codes_of_each_row(ops: Ops, n: int, steps: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (n, 4 * steps), generator=seeded(), dtype=torch.uint8)
    _, sums = ops.pack_weight(codes, bits)
    assert sums.dtype == torch.int32
    assert torch.equal(sums, codes.sum(1, dtype=torch.int32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_sums_do_not_saturate(ops: Ops, bits: int) -> None:
    k = 4608  # the widest layer of SAM2-L
    packed, _ = ops.pack_weight(torch.full((16, k), 2**bits - 1, dtype=torch.uint8), bits)
    highest = 127
    table = torch.full((16,), highest, dtype=torch.int8)
    if ops.device == "cuda" and bits < 8:  # which decodes symmetric tables alone
        highest = 2**bits - 1
        table = (2 * torch.arange(16) - highest).clamp(-128, 127).to(torch.int8)
    x = torch.full((1, k), 255, dtype=torch.uint8)
    one, zero = torch.ones(16), torch.zeros(16)
    out = ops.linear(x, packed, bits, table, one, zero, None, "none", torch.float32, 1.0, 0.0, 255)
    assert (out == (255 - ops.offset) * highest * k).all()


def test_bfloat16_is_rounded_as_torch_rounds_it(ops: Ops) -> None:
    """Half to even, infinities, numbers that round to one, and not-a-number: also where the CPU has no instruction."""
    if ops.interpreted:
        pytest.skip("Triton's interpreter truncates to bfloat16, a GPU rounds")
    kept = torch.randn(4, 40, generator=seeded(5)) * 10.0 ** torch.randint(-30, 30, (4, 40), generator=seeded(6))
    ties = (torch.arange(40, dtype=torch.int32) + 16000 << 16 | 0x8000).view(torch.float32)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.4e38, -3.4e38, 0.0]).repeat(7)[:40]
    kept = torch.cat([kept, ties[None], special[None]])
    packed, table, _ = weight(ops, 40, 8, 4)
    x, zero = torch.zeros(6, 8, dtype=torch.uint8), torch.zeros(40)
    out = ops.linear(x, packed, 4, table * 0, zero, zero, kept, "none", torch.bfloat16, 1.0, 0.0, 255)
    torch.testing.assert_close(out, kept.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 7, 200])
@pytest.mark.parametrize("n", [16, 40, 112, 250])
def test_what_is_folded_into_linear(ops: Ops, rows: int, n: int) -> None:
    x = torch.randint(0, 256, (rows, 96), generator=seeded(3), dtype=torch.uint8)
    residual = torch.randn(rows, n, generator=seeded(4))
    for activation, function in (("gelu", F.gelu), ("relu", F.relu)):
        out, exact = linear(ops, x, n, 4, activation=activation)
        torch.testing.assert_close(out.double(), function(exact), rtol=1e-5, atol=1e-5)
    for added in (residual, residual.bfloat16()):
        out, exact = linear(ops, x, n, 4, residual=added)
        torch.testing.assert_close(out.double(), exact + added.double(), rtol=1e-5, atol=1e-5)
    out, exact = linear(ops, x, n, 4, dtype=torch.bfloat16)
    torch.testing.assert_close(out, exact.float().bfloat16(), rtol=8e-3, atol=1e-5)
    out, exact = linear(ops, x, n, 4, dtype=torch.uint8, grid=(0.05, 30.0, 200))
    codes = quantize_affine(exact, torch.tensor(0.05), torch.tensor(30.0), 0, 200)
    assert ((out.double() - codes).abs() <= 1).all()
    assert (out != codes).double().mean() < 1e-3, "only values next to the middle of two codes may differ"


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 500),
    scale=st.floats(1e-3, 10),
    zero_point=st.integers(0, 255),
    high=st.sampled_from([15, 255]),
    half=st.booleans(),
)
def test_codes_are_those_of_the_fake_quantizer_to_the_bit(
    ops: Ops, n: int, scale: float, zero_point: int, high: int, half: bool
) -> None:
    x = torch.randn(n, generator=seeded(n)) * 100 * scale
    x = x.bfloat16() if half else x
    scale32 = torch.tensor(scale)
    expected = quantize_affine(x, scale32, torch.tensor(float(zero_point)), 0, high)
    assert torch.equal(ops.quantize(x, float(scale32), float(zero_point), high), expected.to(torch.uint8))


def test_codes_keep_the_order_of_dimensions(ops: Ops) -> None:
    image = torch.randn(2, 3, 8, 6, generator=seeded()).to(memory_format=torch.channels_last)
    codes = ops.quantize(image, 0.1, 20.0, 255)
    assert codes.stride() == image.stride()
    assert torch.equal(codes, ops.quantize(image.contiguous(), 0.1, 20.0, 255))
    every_other = ops.quantize(image[:, :, ::2], 0.1, 20.0, 255)
    assert torch.equal(every_other, codes[:, :, ::2])


@pytest.mark.parametrize("shape", [(1, 96), (5, 7, 112), (33, 1), (6, 1152)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm(ops: Ops, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.randn(shape, generator=seeded()) * 3 + 50).to(dtype)  # a mean that a one-pass variance would lose
    gain, bias = torch.rand(shape[-1], generator=seeded(1)) + 0.5, torch.randn(shape[-1], generator=seeded(2))
    exact = F.layer_norm(x.double(), shape[-1:], gain.double(), bias.double(), 1e-6)
    out = ops.layer_norm(x, gain, bias, 1e-6, torch.bfloat16, 1.0, 0.0, 255)
    torch.testing.assert_close(out.double(), exact, rtol=8e-3, atol=8e-3)
    codes = ops.layer_norm(x, gain, bias, 1e-6, torch.uint8, 0.02, 128.0, 255)
    expected = quantize_affine(exact, torch.tensor(0.02), torch.tensor(128.0), 0, 255)
    assert ((codes.double() - expected).abs() <= 1).all()


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 210),
    keys=st.integers(1, 600),
    channels=st.sampled_from([1, 7, 16, 24, 32, 96, 112, 256]),
    width=st.sampled_from([None, 1, 24, 64, 200]),
)
def test_attention(ops: Ops, batch: int, heads: int, queries: int, keys: int, channels: int, width: int | None) -> None:
    """Also with values of another width than the keys'."""
    q, k, v = attention_inputs(batch, heads, queries, keys, channels, width or channels, seeded(queries * keys))
    out = ops.attention(q, k, v, channels**-0.5).transpose(1, 2)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=1e-2)


def test_attention_holds_with_large_scores(ops: Ops) -> None:
    q = torch.full((1, 1, 3, 16), 100.0).bfloat16()
    k = torch.linspace(-100, 100, 600)[None, None, :, None].expand(1, 1, 600, 16).bfloat16().contiguous()
    v = torch.randn(1, 1, 600, 16, generator=seeded()).bfloat16()
    out = ops.attention(q, k, v, 0.25).transpose(1, 2)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    torch.testing.assert_close(out.double(), exact, rtol=2e-2, atol=1e-2)


def test_attention_passes_over_keys_of_scores_beyond_float32(ops: Ops) -> None:
    """More of them than the kernel takes at a time: their score is minus infinity, and they weigh nothing."""
    q, k = torch.full((1, 1, 3, 16), 1e20).bfloat16(), torch.zeros(1, 1, 600, 16).bfloat16()
    k[:, :, :520] = -1e20
    v = torch.randn(1, 1, 600, 16, generator=seeded()).bfloat16()
    out = ops.attention(q, k, v, 0.25).transpose(1, 2)
    torch.testing.assert_close(
        out.float(), v[:, :, 520:].float().mean(2, keepdim=True).expand_as(out), rtol=2e-2, atol=1e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "window", "stride"),
    [(16, 24, 8, 1), (16, 16, 8, 2), (10, 13, 4, 1), (10, 14, 4, 2), (9, 9, 14, 1), (8, 8, 7, 1)],
)
@pytest.mark.parametrize("heads", [1, 3])
def test_window_attention(ops: Ops, height: int, width: int, window: int, stride: int, heads: int) -> None:
    from sam2.modeling.backbones.utils import window_partition, window_unpartition

    channels, batch = 24, 2
    qkv = torch.randn(batch, height, width, 3 * heads * channels, generator=seeded()).bfloat16()
    pad = torch.randn(3 * heads * channels, generator=seeded(1)).bfloat16()
    out = ops.window_attention(qkv, pad, heads, window, stride)

    # What SAM2's block does, in float64, with the padding filled in.
    centred, size = window_partition((qkv - pad).double(), window)
    q, k, v = (centred + pad.double()).unflatten(-1, (3, heads, channels)).unbind(3)
    pooled = F.max_pool2d(q.flatten(3).permute(0, 3, 1, 2), stride).permute(0, 2, 3, 1).unflatten(-1, (heads, channels))
    tokens = [t.flatten(1, 2).transpose(1, 2) for t in (pooled, k, v)]
    side = window // stride
    exact = F.scaled_dot_product_attention(*tokens).transpose(1, 2).reshape(-1, side, side, heads * channels)
    exact = window_unpartition(exact, side, (size[0] // stride, size[1] // stride), (height // stride, width // stride))
    # (qkv - pad) + pad is rounded to bfloat16 once more than what the kernel reads.
    torch.testing.assert_close(out.double(), exact, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [((7, 7), (4, 4), (3, 3)), ((3, 3), (2, 2), (1, 1)), ((1, 5), (1, 2), (0, 4))]
)
def test_patches_are_those_of_unfold(
    ops: Ops, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    image = torch.randint(0, 256, (2, 13, 17, 3), generator=seeded(), dtype=torch.uint8)
    out = ops.patches(image, *kernel, *stride, *padding, 9)
    centred = image.permute(0, 3, 1, 2).float() - 9
    unfolded = F.unfold(centred, kernel, padding=padding, stride=stride) + 9
    length = 3 * kernel[0] * kernel[1]
    expected = unfolded.unflatten(1, (3, -1)).permute(0, 3, 2, 1).flatten(2)
    assert torch.equal(out.flatten(1, 2)[..., :length].float(), expected)
    assert (out[..., length:] == 9).all()


CPU = Ops("cpu")


@needs_kernels
def test_wrong_arguments_are_refused_by_name() -> None:
    packed, table, _ = weight(CPU, 16, 8, 4)
    ones = torch.ones(16)
    arguments = (4, table, ones, ones, None, "none", torch.float32, 1.0, 0.0, 255)
    with pytest.raises(RuntimeError, match="x must be a contiguous"):
        torch.ops.qsam2.linear(torch.ones(2, 8), packed, *arguments)
    with pytest.raises(RuntimeError, match="is not 16 x 12 of 4 bits"):
        torch.ops.qsam2.linear(torch.ones(2, 12, dtype=torch.uint8), packed, *arguments)
    with pytest.raises(RuntimeError, match="k divisible by 4"):
        torch.ops.qsam2.pack_weight(torch.zeros(4, 6, dtype=torch.uint8), 4)
    with pytest.raises(RuntimeError, match="no kernel for 5 bits"):
        torch.ops.qsam2.pack_weight(torch.zeros(4, 8, dtype=torch.uint8), 5)
    with pytest.raises(RuntimeError, match="qsam2: attention of"):
        torch.ops.qsam2.attention(*(torch.zeros(1, 1, 4, 8) for _ in range(3)), 1.0)


@needs_kernels
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    x = torch.randint(0, 256, (1000, 96), generator=seeded(), dtype=torch.uint8)
    q = torch.randn(1, 2, 300, 32, generator=seeded()).bfloat16()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            attended = [torch.ops.qsam2.attention(q, q, q, 0.2, codes) for codes in (False, True)]
            results.append((linear(CPU, x, 100, 3)[0], *attended))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(results[0], results[1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(results[0], results[2], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("heads", "queries", "keys", "channels", "width"),
    [(3, 70, 90, 24, 24), (1, 33, 50, 32, 24), (1, 70, 2100, 64, 24)],
    ids=["values as wide as keys", "narrow values", "narrow values, keys in parts"],
)
def test_attention_gives_the_codes_of_its_bfloat16_to_the_bit(
    ops: Ops, heads: int, queries: int, keys: int, channels: int, width: int
) -> None:
    """Some of them beyond both ends of the grid."""
    q, k, v = attention_inputs(2, heads, queries, keys, channels, width, seeded())
    floats = ops.attention(q, k, v, 0.5)
    scale = torch.tensor(float(min(floats.max(), -floats.min())) / 150)
    expected = quantize_affine(floats.float(), scale, torch.tensor(100.0), 0, 200).to(torch.uint8)
    assert (expected.min(), expected.max()) == (0, 200)
    assert torch.equal(ops.attention(q, k, v, 0.5, False, torch.uint8, float(scale), 100.0, 200), expected)


@pytest.mark.parametrize(("window", "stride"), [(4, 1), (4, 2), (14, 1)])
def test_window_attention_gives_the_codes_of_its_bfloat16_to_the_bit(ops: Ops, window: int, stride: int) -> None:
    qkv = torch.randn(1, 6, 10, 3 * 2 * 24, generator=seeded()).bfloat16()
    arguments = qkv, torch.randn(3 * 2 * 24, generator=seeded(1)).bfloat16(), 2, window, stride
    floats = ops.window_attention(*arguments)
    scale = torch.tensor(float(min(floats.max(), -floats.min())) / 150)
    expected = quantize_affine(floats.float(), scale, torch.tensor(100.0), 0, 200).to(torch.uint8)
    assert (expected.min(), expected.max()) == (0, 200)
    assert torch.equal(ops.window_attention(*arguments, torch.uint8, float(scale), 100.0, 200), expected)


@needs_kernels
def test_every_operator_is_described_for_the_compiler() -> None:
    load_kernels()
    packed, table, _ = weight(CPU, 16, 8, 4)
    ones = torch.ones(16)
    x = torch.randint(0, 256, (2, 8), dtype=torch.uint8)
    q = torch.randn(1, 2, 5, 8).bfloat16()
    qkv, pad = torch.randn(1, 8, 8, 3 * 16).bfloat16(), torch.zeros(48).bfloat16()
    gain = torch.ones(8)
    codes = torch.uint8, 0.1, 3.0, 255
    for name, arguments in (
        ("linear", (x, packed, 4, table, ones, ones, None, "gelu", torch.bfloat16, 1.0, 0.0, 255)),
        ("quantize", (torch.randn(3, 4), 0.1, 3.0, 255)),
        ("layer_norm", (torch.randn(3, 8), gain, gain, 1e-6, *codes)),
        ("attention", (q, q, q[..., :3], 0.3)),
        ("attention", (q, q, q, 0.3, False, *codes)),
        ("window_attention", (qkv, pad, 2, 4, 2)),
        ("window_attention", (qkv, pad, 2, 4, 2, *codes)),
        ("rotate", (q, torch.randn(5, 8), 5)),
        ("patches", (torch.randint(0, 9, (1, 8, 8, 3), dtype=torch.uint8), 3, 3, 2, 2, 1, 1, 0)),
        ("pixels", (torch.randn(1, 2, 3, 4 * 8), gain, 2, torch.bfloat16)),
        ("gelu_planes", (torch.randn(1, 3, 4, 5), torch.bfloat16)),
    ):
        torch.library.opcheck(getattr(torch.ops.qsam2, name).default, arguments)


@pytest.mark.parametrize("stride", [1, 2])
def test_attention_loses_the_windows_that_hold_nan(ops: Ops, stride: int) -> None:
    """A query is pooled over squares, whose first or last token may be the one."""
    pad = torch.zeros(24).bfloat16()
    for y, x in ((0, 0), (1, 1), (3, 2)):
        for which in range(3):  # of the query, key or value
            qkv = torch.randn(1, 4, 8, 24, generator=seeded()).bfloat16()
            qkv[0, y, x, 8 * which] = float("nan")
            out = ops.window_attention(qkv, pad, 1, 4, stride).float()
            side = 4 // stride
            assert out[:, :, side:].isfinite().all()
            lost = out[:, :, :side]
            assert lost[0, y // stride, x // stride].isnan().all() if which == 0 else lost.isnan().any(-1).all()


def test_activations_keep_what_is_not_finite(ops: Ops) -> None:
    packed, table, _ = weight(ops, 16, 4, 4)
    codes = torch.zeros(3, 4, dtype=torch.uint8)
    ones, shift = torch.ones(16), torch.tensor([float("nan"), float("inf")]).repeat(8)
    for activation in ("none", "relu", "gelu"):
        out = ops.linear(codes, packed, 4, table, ones, shift, None, activation, torch.float32, 1.0, 0.0, 255)
        assert out[:, ::2].isnan().all(), activation
        assert (out[:, 1::2] == float("inf")).all(), activation


def test_kernels_of_gpus_are_launched_on_their_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, whatever its arguments are on."""
    from qsam2_ao.native import cuda

    current = [torch.device("cuda:0")]

    @contextmanager
    def device(chosen: torch.device) -> Iterator[None]:
        current.append(chosen)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    x = SimpleNamespace(device=torch.device("cuda:1"))
    assert cuda.on_its_device(lambda t, *rest: (current[-1], t, rest))(x, 2, 3) == (x.device, x, (2, 3))
    assert current == [torch.device("cuda:0")]
