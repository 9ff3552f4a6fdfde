from __future__ import annotations

import pytest
import torch
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
    torch.testing.assert_close(whole.checked_gram(), rows.T @ rows, rtol=1e-6, atol=1e-4)
    assert whole.gram.dtype == torch.float64


def test_many_rows_accumulate_in_float64():
    # 40 times the same block: a float32 running sum would drift, the exact sum is 40 times one block.
    block = torch.rand(8192, 3)
    observer = VRCObserver()
    for _ in range(40):
        observer(block)
    torch.testing.assert_close(observer.gram, 40 * (block.T @ block).double(), rtol=1e-12, atol=0)


def test_convolution_input():
    x = torch.randn(2, 5, 4, 3)
    observer = VRCObserver("nchw")
    observer(x)
    rows = x.permute(0, 2, 3, 1).reshape(-1, 5).double()
    assert observer.n == 24
    torch.testing.assert_close(observer.gram, rows.T @ rows, rtol=1e-5, atol=1e-5)


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
        observer.checked_gram()
    observer(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NonFiniteError, match=r"neck\.convs\.0"):
        observer.checked_gram()
    with pytest.raises(CalibrationError, match=r"neck\.convs\.0.*width 3 after.*width 2"):
        observer(torch.zeros(1, 3))
    with pytest.raises(CalibrationError, match="layout"):
        VRCObserver("nhwc")


def test_state_dict_round_trip():
    observer, fresh = VRCObserver.with_args(layout="last")(), VRCObserver()
    observer(torch.randn(10, 4))
    fresh.load_state_dict(observer.state_dict())
    assert torch.equal(fresh.gram, observer.gram)
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
    torch.testing.assert_close(observer.checked_gram(), rows.T @ rows, rtol=1e-6, atol=1e-6)
