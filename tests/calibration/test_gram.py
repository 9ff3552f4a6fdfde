from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.ao.quantization.observer import ObserverBase

from qsam2_ao.calibration.gram import VRCObserver
from qsam2_ao.errors import CalibrationError, NonFiniteError


def test_streaming_equals_one_batch_and_the_input_is_unchanged():
    x = torch.randn(7, 30, 12) + 3
    streamed, whole = VRCObserver(), VRCObserver()
    assert isinstance(streamed, ObserverBase)
    for part in x:
        assert streamed(part) is part
    whole(x)
    rows = x.reshape(-1, 12).double()
    assert streamed.n == whole.n == 210
    torch.testing.assert_close(streamed.gram, whole.gram, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(whole.statistics().gram, rows.T @ rows, rtol=1e-6, atol=1e-4)
    assert whole.gram.dtype == torch.float64


def test_many_rows_accumulate_in_float64():
    # 40 times the same block: a float32 running sum would drift, the sum is 40 times that of one block.
    block = torch.rand(8192, 3)
    observer, once = VRCObserver(), VRCObserver()
    once(block)
    for _ in range(40):
        observer(block)
    torch.testing.assert_close(observer.gram, 40 * once.gram, rtol=1e-12, atol=0)
    torch.testing.assert_close(once.gram, block.double().T @ block.double(), rtol=1e-6, atol=0)


def test_convolution_input():
    x = torch.randn(2, 5, 4, 3)
    observer = VRCObserver("nchw")
    observer(x)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 5).double()
    assert observer.n == 24
    torch.testing.assert_close(observer.gram, rows.T @ rows, rtol=1e-5, atol=1e-5)


def test_a_single_image_of_a_convolution_has_its_channels_first():
    x = torch.randn(4, 4, 4)
    single, batched = VRCObserver("nchw"), VRCObserver("nchw")
    single(x)
    batched(x[None])
    assert torch.equal(single.gram, batched.gram)


def test_empty_inputs_are_ignored():
    x = torch.randn(10, 4)
    observer, expected = VRCObserver(), VRCObserver()
    observer(torch.randn(0, 4))
    observer(x)
    observer(torch.randn(2, 0, 4))
    expected(x)
    assert observer.n == 10
    assert torch.equal(observer.gram, expected.gram)


def test_autocast_does_not_lower_the_precision():
    x = torch.randn(100, 6)
    plain, cast = VRCObserver(), VRCObserver()
    plain(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast(x)
    assert torch.equal(plain.gram, cast.gram)


def test_has_no_quantization_parameters():
    with pytest.raises(CalibrationError, match="solve_vrc"):
        VRCObserver().calculate_qparams()


def test_errors_name_the_layer():
    observer = VRCObserver(name="neck.convs.0")
    with pytest.raises(CalibrationError, match=r"neck\.convs\.0.*no calibration data"):
        observer.statistics()
    observer(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NonFiniteError, match=r"neck\.convs\.0"):
        observer.statistics()
    with pytest.raises(CalibrationError, match=r"neck\.convs\.0.*width 3 after.*width 2"):
        observer(torch.zeros(1, 3))
    with pytest.raises(CalibrationError, match="layout"):
        VRCObserver("nhwc")


def test_state_dict_round_trip():
    observer, fresh = VRCObserver.with_args(layout="last")(), VRCObserver()
    observer(torch.randn(10, 4))
    fresh.load_state_dict(observer.state_dict())
    for found, expected in zip(fresh.statistics(), observer.statistics(), strict=True):
        assert found == expected if isinstance(found, int) else torch.equal(found, expected)
    assert fresh.n == 10


@pytest.mark.parametrize("layout", ["last", "nchw"])
def test_at_most_so_many_rows_of_a_call_evenly_spread(layout):
    x = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(0))
    observer = VRCObserver(layout, max_rows=16)
    observer(x if layout == "last" else x.movedim(-1, 1))
    rows = x.reshape(60, 4)[[k * 60 // 16 for k in range(16)]].double()
    assert observer.n == 16
    torch.testing.assert_close(observer.gram, rows.T @ rows, rtol=1e-6, atol=1e-6)
    observer(x[:1, :2] if layout == "last" else x[:1, :2].movedim(-1, 1))
    assert observer.n == 26
    with pytest.raises(CalibrationError, match="at least 1"):
        VRCObserver(max_rows=0)


def test_few_sampled_rows_wait_for_others():
    x = torch.randn(7, 10, 6, generator=torch.Generator().manual_seed(0))
    observer = VRCObserver(max_rows=2)
    for part in x:
        observer(part)
    observer.synchronize()
    rows = x[:, [0, 5]].reshape(14, 6).double()
    assert observer.n == 14
    torch.testing.assert_close(observer.statistics().gram, rows.T @ rows, rtol=1e-6, atol=1e-6)


def centred(rows):
    rows = rows.double() - rows.double().mean(0)
    return rows.T @ rows


@settings(max_examples=30, deadline=None)
@given(
    offset=st.sampled_from([0.0, 10.0, -1e3, 1e4]),
    sizes=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    drift=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_offsets_cost_nothing_of_the_variance(offset, sizes, drift, seed):
    generator = torch.Generator().manual_seed(seed)
    observer = VRCObserver()
    parts = [torch.randn(size, 5, generator=generator) for size in sizes]
    for k, part in enumerate(parts):
        part[:, 2] += offset * (k if drift else 1)
        observer(part)
    x = torch.cat(parts)
    found = observer.statistics()
    assert found.n == len(x)
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-7, atol=1e-7)
    expected = centred(x)
    scale = expected.diagonal().sqrt()
    torch.testing.assert_close(found.centred, expected, rtol=0, atol=2e-6 * float(scale.max() ** 2))
    others = torch.tensor([0, 1, 3, 4])  # those that do not drift are known to their own precision
    torch.testing.assert_close(
        found.centred[others][:, others],
        expected[others][:, others],
        rtol=0,
        atol=2e-6 * float(scale[others].max() ** 2),
    )
    expected = x.double().T @ x.double()
    torch.testing.assert_close(found.gram, expected, rtol=1e-6, atol=1e-7 * float(expected.max()))


def test_an_input_that_varies_by_rounding_alone_is_constant():
    x = torch.randn(100, 3)
    x[:, 1] = 1000.1
    x[::2, 1] = torch.nextafter(x[::2, 1], torch.tensor(0.0))
    observer = VRCObserver()
    observer(x)
    found = observer.statistics()
    assert not found.centred[1].any()
    assert not found.centred[:, 1].any()
    assert (found.centred.diagonal()[[0, 2]] > 0).all()


@pytest.mark.parametrize("share", [0.02, 0.2])
def test_the_usual_input_is_that_of_tokens_that_are_not_massive(share):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 6, generator=generator) + torch.tensor([0.0, 0.0, 0.0, 500.0, 3.0, 0.0])
    x[:, 5] = (x[:, 5] - 1).relu()  # active in few tokens, but as others are
    massive = torch.rand(3000, generator=generator) < share
    x[massive, 1] += 1000
    observer = VRCObserver()
    for part in x.split(700):
        observer(part)
    found = observer.statistics()
    assert observer.sample.shape == (512, 6)
    assert abs(float(found.usual[1])) < 0.2
    assert float(found.mean[1]) > 10
    others = torch.tensor([0, 2, 3, 4, 5])
    assert torch.equal(found.usual[others], found.mean[others])
    # What errors count by is about the usual input, or about zero where there is no bias to take it.
    about = x.double() - found.usual
    torch.testing.assert_close(found.gram_for(nn.Linear(6, 2)), about.T @ about, rtol=1e-5, atol=1e-2)
    whole = x.double().T @ x.double()
    torch.testing.assert_close(found.gram_for(nn.Linear(6, 2, bias=False)), whole, rtol=1e-5, atol=1e-2)


def test_the_bias_makes_up_for_what_the_weight_loses_at_the_usual_input():
    observer = VRCObserver("nchw")
    x = torch.randn(2, 6, 10, 10) + 7
    observer(x)
    found = observer.statistics()
    conv, removed = nn.Conv2d(6, 3, 1), torch.randn(3, 6, 1, 1)
    before = conv(x).mean((0, 2, 3))
    with torch.no_grad():
        conv.weight -= removed
    found.into_bias(conv, removed)
    torch.testing.assert_close(conv(x).mean((0, 2, 3)), before, rtol=1e-4, atol=1e-4)
    bare = nn.Linear(6, 3, bias=False)
    found.into_bias(bare, removed)
    assert bare.bias is None
