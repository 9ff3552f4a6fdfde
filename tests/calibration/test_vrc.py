from __future__ import annotations

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.calibration.report import VRCReport
from qsam2_ao.calibration.vrc import calibrate_weight, condition_number, output_energy, solve_vrc
from qsam2_ao.errors import CalibrationError
from qsam2_ao.quantizers import LSCFakeQuantize


def data(n, d_in, d_out, seed=0, rank=None):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator, dtype=torch.double)
    if rank is not None:
        x = x[:, :rank] @ torch.randn(rank, d_in, generator=generator, dtype=torch.double)
    weight = torch.randn(d_out, d_in, generator=generator, dtype=torch.double)
    return x, weight


def quantizer(bits, **settings_):
    def quantize(weight):
        fake_quantize = LSCFakeQuantize(bits, is_weight=True, **settings_)
        fake_quantize.initialize(weight)
        return fake_quantize(weight).detach()

    return quantize


@given(
    n=st.integers(1, 40),
    d_in=st.integers(1, 12),
    d_out=st.integers(1, 6),
    damping=st.sampled_from([1e-4, 1e-2, 0.3, 2.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40, deadline=None)
def test_equals_ridge_regression_of_the_output_and_never_grows(n, d_in, d_out, damping, seed):
    x, weight = data(n, d_in, d_out, seed)
    gram = x.T @ x
    lam = damping * gram.diagonal().mean()
    # min_W' ||X W'^T - X W^T||^2 + lambda ||W'||^2 as one least-squares problem.
    stacked = torch.cat([x, lam.sqrt() * torch.eye(d_in, dtype=torch.double)])
    target = torch.cat([x @ weight.T, torch.zeros(d_in, d_out, dtype=torch.double)])
    expected = torch.linalg.lstsq(stacked, target).solution.T
    solved = solve_vrc(weight, gram, damping)
    torch.testing.assert_close(solved, expected, rtol=1e-8, atol=1e-9)
    assert float(solved.norm()) <= float(weight.norm()) * (1 + 1e-12)


@pytest.mark.parametrize("damping", [0.0, 1e-9])
def test_without_damping_unvisited_directions_vanish(damping):
    x, weight = data(50, 10, 4, rank=6)
    projected = weight @ (torch.linalg.pinv(x) @ x)
    torch.testing.assert_close(solve_vrc(weight, x.T @ x, damping), projected, rtol=1e-6, atol=1e-6)


def test_without_damping_a_full_rank_gram_changes_nothing():
    x, weight = data(100, 10, 4)
    torch.testing.assert_close(solve_vrc(weight, x.T @ x, 0.0), weight)


def test_damping_below_rounding_noise_still_solves():
    x, weight = data(50, 10, 4, rank=6)
    gram = (x.float().T @ x.float()).double()
    gram -= 1e-7 * gram.diagonal().mean() * torch.eye(10, dtype=torch.double)  # indefinite, as float32 sums can be
    solved = solve_vrc(weight, gram, 1e-12)
    torch.testing.assert_close(solved, weight @ (torch.linalg.pinv(x) @ x), rtol=1e-3, atol=1e-3)


def test_pointwise_convolution_keeps_its_shape_and_dtype():
    x, weight = data(60, 8, 4)
    conv = weight.float()[:, :, None, None]
    solved = solve_vrc(conv, x.T @ x, 0.1)
    assert solved.shape == (4, 8, 1, 1)
    assert solved.dtype == torch.float32
    torch.testing.assert_close(solved.flatten(1).double(), solve_vrc(weight, x.T @ x, 0.1), rtol=1e-5, atol=1e-6)


def test_reported_output_change_is_what_the_data_show():
    x, weight = data(200, 16, 8, rank=12)
    solved, report = calibrate_weight(weight, x.T @ x, 200, quantizer(4), damping=0.05, tolerance=1.0, name="layer")
    measured = ((x @ (solved - weight).T).square().sum() / (x @ weight.T).square().sum()).item()
    assert report.output_change == pytest.approx(measured, rel=1e-9)
    assert report.norm_ratio == pytest.approx((solved.norm() / weight.norm()).item())
    quantized = x @ (quantizer(4)(solved) - weight).T
    assert report.quantized_error_after == pytest.approx(
        (quantized.square().sum() / (x @ weight.T).square().sum()).item(), rel=1e-5
    )
    assert report.lam == pytest.approx(0.05 * float((x.T @ x).diagonal().mean()))
    assert report.std_after == pytest.approx(solved.std(correction=0).item())
    assert report.max_after == pytest.approx(solved.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("settings_", [{}, {"granularity": "group", "group_size": 8}, {"granularity": "tensor"}])
def test_auto_is_never_worse_than_off(bits, settings_):
    for seed in range(4):
        x, weight = data(64, 24, 12, seed, rank=None if seed % 2 else 10)
        weight = weight.float()
        solved, report = calibrate_weight(weight, x.T @ x, 64, quantizer(bits, **settings_), tolerance=0.02)
        assert report.quantized_error_after <= report.quantized_error_before
        assert report.output_change <= 0.02
        if report.damping == 0:
            assert torch.equal(solved, weight)


def test_auto_uses_the_unvisited_directions():
    x, weight = data(200, 32, 8, rank=8)
    _, report = calibrate_weight(weight.float(), x.T @ x, 200, quantizer(3))
    assert report.damping > 0
    assert report.quantized_error_after < 0.7 * report.quantized_error_before


def test_over_the_tolerance_the_weight_is_kept_and_the_report_says_so():
    x, weight = data(100, 10, 4)
    kept, report = calibrate_weight(weight, x.T @ x, 100, quantizer(4), damping=10.0, name="mlp.1")
    assert torch.equal(kept, weight)
    assert report.output_change > 0.01
    assert "tolerance" in report.refused
    assert VRCReport([report], images=1).refused == [f"mlp.1: {report.refused}"]


def test_dead_inputs_keep_the_weight():
    kept, report = calibrate_weight(torch.ones(2, 3), torch.zeros(3, 3), 5, quantizer(4), damping=0.1)
    assert torch.equal(kept, torch.ones(2, 3))
    assert "all zero" in report.refused


def test_few_rows_and_ill_conditioned_data_are_warned_of():
    x, weight = data(6, 10, 4)
    _, report = calibrate_weight(weight, x.T @ x, 6, quantizer(4), damping=0.0)
    assert report.cond == float("inf")
    assert "n=6 < d_in=10" in report.warnings[0]
    scales = torch.logspace(0, -8, 10, dtype=torch.double)
    x = data(100, 10, 4)[0] * scales
    _, report = calibrate_weight(weight, x.T @ x, 100, quantizer(4), damping=0.0)
    assert "cond(G)" in report.warnings[0]


def test_condition_number():
    gram = torch.diag(torch.tensor([4.0, 1.0, 0.5]))
    assert condition_number(gram, 10) == pytest.approx(8.0)
    assert output_energy(torch.ones(1, 3), gram) == pytest.approx(5.5)


def test_condition_number_of_a_wide_layer_is_an_estimate():
    values = torch.logspace(0, -6, 1100, dtype=torch.double)
    basis, _ = torch.linalg.qr(torch.randn(1100, 1100, generator=torch.Generator().manual_seed(0)).double())
    gram = (basis * values) @ basis.T
    assert 1e6 <= condition_number(gram, 2000) <= 1e6 * 1100
    singular = torch.ones(1100, 1100).double()
    assert condition_number(singular, 2000) > 1e12


@pytest.mark.slow
def test_lambdas_of_a_large_layer_are_compared_on_some_of_its_channels():
    x, weight = data(3000, 1200, 400, rank=300)
    weight = weight.float()
    asked = []

    def quantize(w):
        asked.append(len(w))
        return quantizer(3)(w)

    solved, report = calibrate_weight(weight, x.T @ x, 3000, quantize)
    assert set(asked) == {218}  # 2^18 / 1200
    assert report.damping > 0
    assert report.quantized_error_after < report.quantized_error_before
    channels = torch.arange(218) * 400 // 218
    error = x @ (quantizer(3)(solved[channels]).double() - weight[channels].double()).T
    wanted = (error.square().sum() / (x @ weight[channels].double().T).square().sum()).item()
    assert report.quantized_error_after == pytest.approx(wanted, rel=1e-4)
    whole = x @ (quantizer(3)(solved).double() - weight.double()).T
    before = x @ (quantizer(3)(weight).double() - weight.double()).T
    assert whole.square().sum() < before.square().sum()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_operands_name_the_layer(bad):
    gram = torch.eye(3)
    gram[0, 0] = bad
    with pytest.raises(CalibrationError, match=r"trunk\.blocks\.3.*Gram matrix"):
        solve_vrc(torch.ones(2, 3), gram, 0.1, name="trunk.blocks.3")
    with pytest.raises(CalibrationError, match=r"trunk\.blocks\.3.*weight"):
        solve_vrc(torch.full((2, 3), bad), torch.eye(3), 0.1, name="trunk.blocks.3")


def test_what_is_no_gram_matrix_is_refused():
    with pytest.raises(CalibrationError, match=r"'layer'.*negative eigenvalue"):
        solve_vrc(torch.ones(2, 3), torch.diag(torch.tensor([4.0, 1.0, -2.0])), 0.1, name="layer")
    with pytest.raises(CalibrationError, match=r"'layer'.*does not fit"):
        solve_vrc(torch.ones(2, 3), torch.eye(4), 0.1, name="layer")


@pytest.mark.parametrize("damping", [-1.0, float("nan"), float("inf"), "best"])
def test_bad_damping_is_refused(damping):
    with pytest.raises(CalibrationError, match="damping"):
        calibrate_weight(torch.ones(2, 3), torch.eye(3), 3, quantizer(4), damping=damping)
    if damping != "best":
        with pytest.raises(CalibrationError, match="damping"):
            solve_vrc(torch.ones(2, 3), torch.eye(3), damping)


def test_report_is_json_able():
    x, weight = data(6, 10, 4)
    _, report = calibrate_weight(weight, x.T @ x, 6, quantizer(4), name="layer")
    whole = VRCReport([report, copy.copy(report)], images=3, passes=2)
    stored = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert stored["images"] == 3
    assert stored["layers"][0]["cond"] is None
    assert stored["layers"][0]["layer"] == "layer"
    assert whole.table().row_count == 2
    assert whole.__rich__().row_count == 2
    assert len(whole.warnings) == 2


def massive_data(offset, channels, tokens, seed=0, n=2000, d_in=32, rank=24):
    """Inputs of which some channels are large in some tokens (or in all), and what they are without."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank, generator=generator, dtype=torch.double)
    x = x @ torch.randn(rank, d_in, generator=generator, dtype=torch.double) / rank**0.5
    massive = x.clone()
    rows = torch.rand(n, generator=generator) < tokens
    massive[:, :channels] += offset * rows[:, None] * torch.linspace(0.5, 1.5, channels).double()
    return massive, x, torch.randn(16, d_in, generator=generator), ~rows


def about(x, centre):
    return (x - centre).T @ (x - centre)


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("offset", [10.0, 100.0, 1000.0])
def test_a_constant_offset_changes_nothing_of_the_centred_solution(offset, channels):
    x, plain, weight, _ = massive_data(offset, channels, tokens=1.0)
    for damping in ("auto", 0.0, 0.001):
        ours, theirs = (
            calibrate_weight(weight, about(data, data.mean(0)), len(x), quantizer(3), damping=damping)
            for data in (x, plain)
        )
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-4)
        assert ours[1].damping == theirs[1].damping
        assert ours[1].output_change == pytest.approx(theirs[1].output_change, abs=1e-8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("offset", [10.0, 100.0, 1000.0])
def test_massive_tokens_do_not_hide_the_others(offset, channels, bits):
    x, _, weight, ordinary = massive_data(offset, channels, tokens=0.05)
    kept, usual = quantizer(bits)(weight), x[ordinary].mean(0)
    solved, report = calibrate_weight(weight, about(x, usual), len(x), quantizer(bits))
    assert report.quantized_error_after <= report.quantized_error_before

    def error(w):
        return float(((x[ordinary] - usual) @ (w - weight).double().T).square().sum())

    energy = error(torch.zeros_like(weight))
    assert error(solved) <= 0.02 * energy
    assert error(quantizer(bits)(solved)) <= 1.05 * error(kept) + 1e-3 * energy


@pytest.mark.parametrize("factor", [1e3, 1e4])
def test_without_damping_a_massive_input_hides_no_direction(factor):
    # Directions of 1e-3 of the others' energy stay beside an input of 1e6 to 1e8 times that energy.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 12, generator=generator, dtype=torch.double)
    x[:, 3] = x[:, 2] + 0.03 * x[:, 3]
    x[:, 0] *= factor
    x[:, 11] = 0
    weight = torch.randn(4, 12, generator=generator, dtype=torch.double)
    gram = (x.float().T @ x.float()).double()
    solved = solve_vrc(weight, gram, 0.0)
    torch.testing.assert_close(solved[:, :11], weight[:, :11], rtol=1e-6, atol=1e-6)
    assert not solved[:, 11].any()
    # And lambda is relative to the others.
    damped = solve_vrc(weight, gram, 0.01)
    assert float((damped - weight)[:, [1, 4, 5, 6]].abs().max()) < 0.2
