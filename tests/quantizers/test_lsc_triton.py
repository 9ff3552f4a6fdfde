"""The kernels of LSC for GPUs against torch's operators, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from qsam2_ao.quantizers import lsc_function
from qsam2_ao.quantizers.affine import fake_quantize_affine
from qsam2_ao.quantizers.grids import ClipRange
from qsam2_ao.quantizers.lsc_function import LSCFunction, LSCSettings
from qsam2_ao.quantizers.lsc_triton import fake_quantize, gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = (
    LSCSettings(0, 15, "tensor", None),
    LSCSettings(-128, 127, "tensor", None),
    LSCSettings(0, 15, "channel", None),
    LSCSettings(0, 7, "group", 7),
    LSCSettings(0, 15, "group", 32),
)


def case(settings: LSCSettings, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input, gradient, scales and zero points; values in and outside of the range, and in the middle of two codes."""
    generator = torch.Generator().manual_seed(len(shape))
    x, grad = (torch.randn(shape, generator=generator).to(dtype).to(DEVICE) for _ in range(2))
    inputs = x[0].numel()
    scales = {
        "tensor": (1,),
        "channel": (shape[0],),
        "group": (shape[0], -(-inputs // (settings.group_size or 1))),
    }[settings.granularity]
    scale = (torch.rand(scales, generator=generator) * 1.6 + 0.8) / (settings.quant_max - settings.quant_min + 1)
    middle = (settings.quant_min + settings.quant_max) / 2
    zero_point = torch.full(scales, middle if settings.granularity != "tensor" else float(round(middle)))
    x.view(-1)[:3] = torch.tensor([0.5, 1.5, -2.5]).to(dtype) * scale.flatten()[0]
    return x, grad, scale.to(DEVICE), zero_point.to(DEVICE)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("shape", [(6, 40), (5, 3, 3, 3), (3, 2500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equal_to_torch(settings: LSCSettings, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, grad, scale, zero_point = case(settings, shape, dtype)
    wide = lsc_function._broadcast(x, scale, zero_point, settings)
    expected = fake_quantize_affine(x, *wide, settings.quant_min, settings.quant_max).to(dtype)
    assert torch.equal(fake_quantize(x, scale, zero_point, *settings), expected)

    ends = lsc_function._just_outside(settings.quant_min, settings.quant_max)
    to_x, total = gradients(grad, x, scale, zero_point, ends, *settings)
    want_x, want_total = lsc_function._from_input(grad, x, scale, zero_point, settings, (True, True))
    assert want_x is not None
    assert want_total is not None
    assert torch.equal(to_x, want_x)
    assert 0 < float((to_x == 0).float().mean()) < 1, "some are clipped"
    assert total.shape == want_total.shape
    torch.testing.assert_close(total, want_total, rtol=1e-4, atol=1e-4)


def test_strided_tensors_keep_their_layout() -> None:
    settings = SETTINGS[0]
    x, grad, scale, zero_point = case(settings, (2, 8, 5, 7), torch.float32)
    x = x.to(memory_format=torch.channels_last)
    out = fake_quantize(x, scale, zero_point, *settings)
    assert out.stride() == x.stride()
    assert torch.equal(out, fake_quantize(x.contiguous(), scale, zero_point, *settings))
    ends = lsc_function._just_outside(0, 15)
    to_x, total = gradients(grad, x, scale, zero_point, ends, *settings)
    want_x, want_total = gradients(grad, x.contiguous(), scale, zero_point, ends, *settings)
    assert torch.equal(to_x, want_x)
    torch.testing.assert_close(total, want_total)


def test_what_is_not_a_number_stays() -> None:
    x = torch.tensor([float("nan"), 1.0, float("inf")], device=DEVICE)
    one, zero = torch.ones(1, device=DEVICE), torch.zeros(1, device=DEVICE)
    out = fake_quantize(x, one, zero, 0, 15)
    assert out[0].isnan()
    assert out[1:].tolist() == [1, 15]


@pytest.mark.skipif(DEVICE == "cuda", reason="the interpreter stands in for a GPU")
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_function_gives_the_same_by_the_kernels(settings: LSCSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad, scale, zero_point = case(settings, (6, 40), torch.float32)
    clip = ClipRange(scale, zero_point, torch.ones_like(scale), torch.zeros_like(scale, dtype=torch.bool))
    results = []
    for fused in (False, True):
        monkeypatch.setattr(lsc_function, "fused", lambda x, fused=fused: fused)
        monkeypatch.setattr(lsc_function, "on_its_device", lambda kernel: kernel)
        leaf, alpha = x.clone().requires_grad_(), torch.ones_like(scale, requires_grad=True)
        out = LSCFunction.apply(leaf, alpha, clip, torch.ones_like(scale), settings)
        out.backward(grad)
        results.append((out, leaf.grad, alpha.grad))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
