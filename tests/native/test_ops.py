"""The operators of the CPU's kernels: what they refuse, how far their sums go, and what they read."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qsam2_ao.native import load_kernels, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
F32, HALF = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def call(name: str, *arguments: Any) -> Any:
    return getattr(torch.ops.qsam2, name)(*arguments)


def codes(*shape: int) -> Tensor:
    return torch.randint(0, 4, shape, dtype=torch.uint8)


def half(*shape: int) -> Tensor:
    return torch.randn(shape).bfloat16()


REFUSED: dict[str, tuple[str, Callable[[], Any]]] = {
    "norm of nothing": ("layer norm of 0", lambda: call("layer_norm", *[torch.ones(0)] * 3, 1e-6, HALF, 1.0, 0.0, 255)),
    "no inputs": ("a product with x of", lambda: linear(codes(2, 0), codes(0), 4)),
    "5 bits": ("no kernel for 5 bits", lambda: linear(codes(2, 8), codes(128), 5)),
    "no stride": ("stride 0 x 1", lambda: call("patches", codes(1, 4, 4, 3), 3, 3, 0, 1, 0, 0, 0)),
    "no kernel": ("patches of 0 x 3", lambda: call("patches", codes(1, 4, 4, 3), 0, 3, 1, 1, 0, 0, 0)),
    "less than no padding": ("padding -1 x 0", lambda: call("patches", codes(1, 4, 4, 3), 3, 3, 1, 1, -1, 0, 0)),
    "kernel beyond the image": ("is larger than", lambda: call("patches", codes(1, 2, 2, 3), 3, 3, 2, 2, 0, 0, 0)),
    "no heads": ("with 0 heads", lambda: call("window_attention", half(1, 4, 4, 24), half(24), 0, 4, 1)),
    "less than no heads": ("with -1 heads", lambda: call("window_attention", half(1, 4, 4, 24), half(24), -1, 4, 1)),
    "no channels": ("qsam2: attention of", lambda: call("attention", *[half(1, 1, 4, 0)] * 3, 1.0)),
    "no keys": ("with 0 keys", lambda: call("attention", half(1, 1, 4, 8), *[half(1, 1, 0, 8)] * 2, 1.0)),
    "channels beyond 32 bits": (
        "as codes",
        lambda: call("attention", *[half(1, 1, 1, 2**17 + 4)] * 3, 1.0, True),
    ),
}


def linear(x: Tensor, weight: Tensor, bits: int) -> Tensor:
    table, ones = torch.arange(16, dtype=torch.int8), torch.ones(16)
    return call("linear", x, weight, bits, table, ones, ones, None, "none", F32, 1.0, 0.0, 255)


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_result_is_refused(case: str) -> None:
    """Some of these would divide by zero, which ends the process, others give memory that nobody wrote."""
    said, wrong = REFUSED[case]
    with pytest.raises(RuntimeError, match=f"qsam2: .*{said}" if "qsam2" not in said else said):
        wrong()


def test_results_without_values() -> None:
    assert linear(codes(0, 8), call("pack_weight", codes(16, 8), 4)[0], 4).shape == (0, 16)
    assert call("patches", codes(0, 4, 4, 3), 3, 3, 1, 1, 0, 0, 0).shape == (0, 2, 2, 28)
    assert call("window_attention", half(0, 4, 4, 24), half(24), 2, 4, 2).shape == (0, 2, 2, 8)
    for int8_scores in (False, True):
        assert call("attention", half(1, 2, 0, 8), *[half(1, 2, 5, 8)] * 2, 1.0, int8_scores).shape == (1, 0, 2, 8)
        assert call("attention", *[half(1, 0, 5, 8)] * 3, 1.0, int8_scores).shape == (1, 5, 0, 8)
    assert call("quantize", torch.ones(3, 0), 1.0, 0.0, 255).shape == (3, 0)
    assert call("gelu_planes", half(2, 3, 0, 4), F32).shape == (2, 3, 0, 4)


def test_the_longest_scores_as_codes_are_exact() -> None:
    """All codes at an end of the grid: sums of 2^17 products of 127 and 127, and what is taken out of them."""
    channels = 2**17
    q = torch.ones(1, 1, 1, channels).bfloat16()
    k = torch.cat([q, -q], 2)
    v = torch.eye(2)[None, None].bfloat16()
    out = call("attention", q, k, v, 1 / channels, True)
    torch.testing.assert_close(out.flatten().float(), torch.tensor([1.0, -1.0]).softmax(0), rtol=1e-2, atol=0)


class Allocated(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _before = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks")
    _fields_ = [(name, ctypes.c_size_t) for name in (*_before, "uordblks", "fordblks", "keepcost")]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone says what is allocated")
def test_calls_leave_no_memory_behind() -> None:
    """torch's own conversion to std::string leaves 48 bytes of each."""
    allocated = ctypes.CDLL(None).mallinfo2
    allocated.restype = Allocated
    x, weight = codes(1, 8), call("pack_weight", codes(16, 8), 4)[0]
    linear(x, weight, 4)
    before = allocated().uordblks
    for _ in range(20_000):
        linear(x, weight, 4)
    assert allocated().uordblks - before < 20_000


def guarded(x: Tensor, kept: list[mmap.mmap]) -> Tensor:
    """The same, in memory behind which no page can be read or written."""
    x = x.contiguous()
    size = x.numel() * x.element_size()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    kept.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    there = torch.frombuffer(memory, dtype=x.dtype, count=x.numel(), offset=pages - size).view(x.shape)
    return there.copy_(x)


def guarded_calls(place: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What every operator gives for sizes that fill no register, with its inputs placed so."""
    found = []
    for bits in (2, 3, 4, 8):
        for n in (16, 37, 100):
            weight, sums = call("pack_weight", place(codes(n, 44)), bits)
            vectors = [place(torch.randn(n)) for _ in range(2)]
            table = place(torch.arange(16, dtype=torch.int8))
            for residual in (torch.randn(7, n), half(7, n)):
                x, kept = place(codes(7, 44)), place(residual)
                for dtype in (F32, HALF, torch.uint8):
                    fused = (kept, "gelu", dtype, 0.1, 3.0, 255)
                    found.append(call("linear", x, place(weight), bits, table, *vectors, *fused))
            found += [weight, sums]
    ends = [place(torch.randn(n)) for n in (37, 37, 5)]
    for floats in (torch.randn(3, 37), half(3, 37)):
        found.append(call("quantize", place(floats), 0.1, 3.0, 255))
        found += [
            call("layer_norm", place(floats), *ends[:2], 1e-6, dtype, 0.1, 3.0, 255) for dtype in (HALF, torch.uint8)
        ]
        found.append(call("gelu_planes", place(floats.reshape(1, 3, 37, 1)), HALF))
        found.append(call("rotate", place(floats[:, :36].reshape(1, 1, 3, 36)), place(torch.randn(1, 36)), 2))
        found.append(call("pixels", place(floats[:1, :20].reshape(1, 1, 1, 20)), ends[2], 2, F32))
    for int8_scores in (False, True):
        tokens = [place(half(1, 2, n, c)) for n, c in ((7, 23), (37, 23), (37, 9))]
        found.append(call("attention", *tokens, 0.2, int8_scores))
    found.append(call("window_attention", place(half(1, 5, 7, 3 * 2 * 9)), place(half(54)), 2, 4, 2))
    found.append(call("patches", place(codes(1, 5, 7, 3)), 3, 3, 2, 2, 1, 1, 9))
    return found


def test_guarded_inputs_are_read_to_their_end_and_no_further() -> None:
    """In a process of its own, which a read behind them would end."""
    torch.manual_seed(0)
    expected = guarded_calls(lambda x: x)
    child = os.fork()
    if child == 0:
        same = False
        try:
            torch.set_num_threads(1)
            torch.manual_seed(0)
            kept: list[mmap.mmap] = []
            found = guarded_calls(lambda x: guarded(x, kept))
            same = all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
        finally:
            os._exit(not same)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_codes_of_any_layout_lie_as_torch_compile_expects() -> None:
    image = torch.randn(2, 6, 8, 3)
    layouts = [
        image,
        image.permute(0, 3, 1, 2),
        image.permute(0, 3, 1, 2)[..., 2:],
        image.permute(0, 3, 1, 2)[:, :2],
        image[:, ::2],
        image[:1].permute(0, 3, 1, 2).expand(4, -1, -1, -1),
        image[:, :1].expand(-1, 5, -1, -1),
        torch.randn(3, 0, 2),
        torch.randn(()),
    ]
    for x in layouts:
        real = call("quantize", x, 0.1, 128.0, 255)
        with FakeTensorMode() as mode:
            fake = call("quantize", mode.from_tensor(x), 0.1, 128.0, 255)
        assert (fake.shape, fake.stride()) == (real.shape, real.stride()), x.stride()
