"""Attention whose queries and keys are multiplied as int8 codes, against float64 on the same codes.

On CPUs, and on a GPU or in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attention_inputs import attention_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qsam2_ao.native import load_kernels, why_no_kernels

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def rounded(x: Tensor) -> Tensor:
    """To the int8 grid of each token."""
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def on_a_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Tokens before heads, as queries have them."""
    if (reason := why_no_kernels()) is not None:
        pytest.skip(reason)
    load_kernels()
    return torch.ops.qsam2.attention(q, k, v, scale, True).transpose(1, 2)


def on_a_gpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    pytest.importorskip("triton")
    from qsam2_ao.native import cuda

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return cuda.attention(*(t.to(device) for t in (q, k, v)), scale, True).transpose(1, 2).cpu()


def compare(attend: Attend, batch: int, heads: int, queries: int, keys: int, channels: int, width: int) -> None:
    """Keys that are all far from zero keep their precision: what they share is taken off."""
    generator = torch.Generator().manual_seed(queries * keys)
    q, k, v = attention_inputs(batch, heads, queries, keys, channels, width, generator)
    k = k + 20 * torch.randn(channels, generator=generator).bfloat16()
    out = attend(q, k, v, channels**-0.5)
    coded = rounded(k.double() - k.double().mean(-2, keepdim=True))
    exact = F.scaled_dot_product_attention(rounded(q.double()), coded, v.double())
    torch.testing.assert_close(out.double(), exact, rtol=3e-2, atol=3e-2)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    queries=st.integers(1, 210),
    keys=st.integers(2, 600),
    channels=st.sampled_from([2, 7, 16, 30, 64, 100, 256]),
    width=st.sampled_from([24, 64]),
)
def test_attention_of_codes(batch: int, heads: int, queries: int, keys: int, channels: int, width: int) -> None:
    compare(on_a_cpu, batch, heads, queries, keys, channels, width)


@pytest.mark.parametrize(
    ("batch", "heads", "queries", "keys", "channels", "width"),
    [(2, 3, 70, 90, 30, 64), (1, 2, 5, 2, 7, 24), (2, 1, 33, 2100, 64, 24), (1, 1, 20, 64, 256, 256)],
    ids=["values wider than keys", "two keys", "keys in parts", "as wide as keys"],
)
def test_attention_of_codes_on_cuda(batch: int, heads: int, queries: int, keys: int, channels: int, width: int) -> None:
    compare(on_a_gpu, batch, heads, queries, keys, channels, width)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("attend", [on_a_cpu, on_a_gpu], ids=["cpu", "cuda"])
def test_attention_of_codes_loses_what_is_not_finite(attend: Attend, bad: float) -> None:
    q, k, v = torch.randn(3, 2, 1, 40, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    lost_query, lost_key = q.clone(), k.clone()
    lost_query[1, 0, 7, 3] = lost_key[1, 0, 7, 3] = bad
    out = attend(lost_query, k, v, 0.25)
    assert out[1, 0, 7].isnan().all()
    assert out.isnan().any(-1).sum() == 1
    out = attend(q, lost_key, v, 0.25)
    assert out[1].isnan().all()
    assert out[0].isfinite().all()
    k[:] = 3.0  # nothing is left but the mean
    out = attend(q, k, v, 0.25).float()
    torch.testing.assert_close(out, v.float().mean(-2, keepdim=True).expand_as(out), rtol=2e-2, atol=1e-2)
