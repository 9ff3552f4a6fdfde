"""The decoder's upscaling on the kernels against the modules that it replaces."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sam2.modeling.sam2_utils import LayerNorm2d
from torch import nn

from qsam2_ao import load_qsam2, lower_float
from qsam2_ao.deploy.kernels.upscaling import GeluPlanes, ImageNorm, Upscale, lower_upscaling
from qsam2_ao.models.official import build_official
from qsam2_ao.native import load_kernels, why_no_kernels

pytestmark = pytest.mark.skipif(why_no_kernels() is not None, reason=str(why_no_kernels()))
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
PAIRS = st.tuples(DTYPES, DTYPES)


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    load_kernels()


def image(batch: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    stride=st.integers(1, 3),
    channels=st.integers(1, 40),
    dtypes=PAIRS,
)
def test_pixels_are_put_in_place(
    batch: int, height: int, width: int, stride: int, channels: int, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    taken, wanted = dtypes
    x = image(batch, height, width, stride * stride * channels).to(taken)
    bias = torch.randn(channels, generator=torch.Generator().manual_seed(1))
    out = torch.ops.qsam2.pixels(x, bias, stride, wanted)
    placed = x.view(batch, height, width, stride, stride, channels).transpose(2, 3).float() + bias
    assert torch.equal(out, placed.reshape(batch, height * stride, width * stride, channels).to(wanted))


@settings(deadline=None)
@given(
    batch=st.integers(0, 3),
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    channels=st.integers(1, 40),
    layout=st.sampled_from(LAYOUTS),
    dtypes=PAIRS,
)
def test_gelu_into_planes(
    batch: int,
    height: int,
    width: int,
    channels: int,
    layout: torch.memory_format,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> None:
    taken, wanted = dtypes
    x = image(batch, channels, height, width).to(taken).contiguous(memory_format=layout)
    out = torch.ops.qsam2.gelu_planes(x, wanted)
    assert out.is_contiguous()
    assert out.dtype == wanted
    tolerance = 1e-6 if wanted == torch.float32 else 2**-8
    torch.testing.assert_close(out.double(), F.gelu(x.double()), rtol=tolerance, atol=1e-6)


def test_planes_of_any_other_layout() -> None:
    x = image(2, 6, 5, 8).transpose(2, 3)
    torch.testing.assert_close(torch.ops.qsam2.gelu_planes(x, torch.float32), F.gelu(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@torch.inference_mode()
def test_upscale(bias: bool, autocast: bool) -> None:
    torch.manual_seed(0)
    conv, x = nn.ConvTranspose2d(24, 10, 2, stride=2, bias=bias), image(2, 24, 5, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = Upscale(conv)(x)
    assert out.dtype == (torch.bfloat16 if autocast else torch.float32)
    assert Upscale(conv)(x[:0]).shape == (0, *out.shape[1:])
    expected = conv.double()(x.double())
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


@torch.inference_mode()
def test_image_norm() -> None:
    norm = LayerNorm2d(20)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = image(2, 20, 5, 7)
    torch.testing.assert_close(ImageNorm(norm)(x), norm(x), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.inference_mode()
def test_the_decoder_of_an_official_size(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    model = build_official("sam2.1-t", image_size=256).eval()
    lowered = copy.deepcopy(model)
    lower_upscaling(lowered)
    kinds = [type(layer) for layer in lowered.sam_mask_decoder.output_upscaling]
    assert kinds == [Upscale, ImageNorm, nn.GELU, Upscale, GeluPlanes]
    fine = [image(2, c, s, s, seed=c).contiguous(memory_format=layout) for c, s in ((32, 64), (64, 32))]
    click = {"point_coords": torch.full((2, 1, 2), 100.0), "point_labels": torch.ones(2, 1, dtype=torch.int32)}
    features = image(2, 256, 16, 16)

    def masks(of: nn.Module) -> torch.Tensor:
        return of._forward_sam_heads(features, point_inputs=click, high_res_features=fine, multimask_output=True)[0]

    expected = masks(model)
    assert masks(lowered).dtype == expected.dtype
    error = (masks(lowered) - expected).square().mean() / expected.square().mean()
    assert float(error.sqrt()) < 0.01


@torch.inference_mode()
def test_without_features_of_the_encoder() -> None:
    """SAM's decoder, which calls the five modules as one."""
    torch.manual_seed(0)
    model = build_official("sam2.1-t", image_size=256).eval()
    expected = model.sam_mask_decoder.output_upscaling(image(1, 256, 8, 8))
    lower_upscaling(model)
    out = model.sam_mask_decoder.output_upscaling(image(1, 256, 8, 8))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_other_upscaling_is_kept() -> None:
    model = build_official("sam2.1-t", image_size=256).eval()
    layers = model.sam_mask_decoder.output_upscaling
    layers[3] = nn.ConvTranspose2d(64, 32, 3, stride=2)
    lower_upscaling(model)
    assert model.sam_mask_decoder.output_upscaling is layers
    model.sam_mask_decoder.output_upscaling = nn.Sequential(nn.Upsample(scale_factor=4))
    lower_upscaling(model)
    assert isinstance(model.sam_mask_decoder.output_upscaling[0], nn.Upsample)


@pytest.mark.slow
def test_models_are_lowered_with_it(packed_file: Path) -> None:
    for model in (load_qsam2(packed_file, target="int8"), lower_float(build_official("sam2.1-t", image_size=256))):
        assert isinstance(model.sam_mask_decoder.output_upscaling[-1], GeluPlanes)
    assert isinstance(load_qsam2(packed_file).sam_mask_decoder.output_upscaling[-1], nn.GELU)
