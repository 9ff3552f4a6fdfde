from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qsam2_ao.errors import QConfigError
from qsam2_ao.quantizers.grids import (
    WEIGHT_GRIDS,
    RangeStats,
    activation_grid,
    default_weight_grid,
    weight_grid,
)


def stats(mean=0.0, std=1.0, low=-3.0, high=3.0) -> RangeStats:
    return RangeStats(*(torch.tensor([value]) for value in (mean, std, low, high)))


@pytest.mark.parametrize("bits", range(2, 9))
def test_number_of_codes(bits):
    levels = {name: weight_grid(name, bits).steps + 1 for name in WEIGHT_GRIDS}
    full = 2**bits
    assert levels == {"midrise": full, "symmetric": full - 1, "asymmetric": full, "mean": full}


def test_default_grid_is_midrise_below_eight_bits():
    assert [default_weight_grid(bits) for bits in range(2, 9)] == ["midrise"] * 6 + ["symmetric"]
    assert weight_grid(None, 3).name == "midrise"


def test_midrise_has_its_levels_at_odd_half_steps():
    clip = weight_grid("midrise", 2).clip_range(stats(), torch.tensor([1.5]))
    assert clip.scale.item() == pytest.approx(1.0)
    levels = (torch.arange(4) - clip.zero_point) * clip.scale
    assert levels.tolist() == pytest.approx([-1.5, -0.5, 0.5, 1.5])


def test_mean_grid_puts_the_mean_at_its_centre():
    clip = weight_grid("mean", 4).clip_range(stats(mean=0.3, low=-2.0, high=2.0), torch.tensor([1.0]))
    assert ((7.5 - clip.zero_point) * clip.scale).item() == pytest.approx(0.3, abs=1e-6)


def test_clip_range_stays_within_the_observed_extremes():
    clip = activation_grid(8).clip_range(stats(mean=0.5, std=1.0, low=-0.17, high=9.0), torch.tensor([3.0]))
    low = (0 - clip.zero_point) * clip.scale
    high = (255 - clip.zero_point) * clip.scale
    assert low.item() == pytest.approx(-0.17, abs=clip.scale.item() / 2)
    assert (high - low).item() == pytest.approx(3.5 + 0.17, rel=1e-6)
    # Only the upper end moves with alpha.
    assert clip.scale_per_alpha.item() == pytest.approx(1 / 255)
    assert not clip.at_limit.item()


@given(
    bits=st.integers(2, 8),
    mean=st.floats(-100, 100, width=32),
    std=st.floats(0, 50, width=32),
    below=st.floats(0, 100, width=32),
    above=st.floats(0, 100, width=32),
    alpha=st.floats(0.125, 128, width=32),
)
def test_activation_zero_point_is_a_code_and_zero_is_exact(bits, mean, std, below, above, alpha):
    grid = activation_grid(bits)
    clip = grid.clip_range(stats(mean, std, mean - below, mean + above), torch.tensor([alpha]))
    zero_point = clip.zero_point.item()
    assert zero_point == round(zero_point)
    assert 0 <= zero_point <= grid.quant_max
    assert clip.scale.item() > 0


@given(bits=st.integers(2, 8), grid=st.sampled_from(WEIGHT_GRIDS), alpha=st.floats(0.125, 128, width=32))
def test_all_zero_statistics_give_a_finite_range(bits, grid, alpha):
    clip = weight_grid(grid, bits).clip_range(stats(0, 0, 0, 0), torch.tensor([alpha]))
    assert clip.scale.item() > 0
    assert torch.isfinite(clip.zero_point).all()


@pytest.mark.parametrize("bits", [1, 9, 4.5])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(QConfigError, match=r"weights cannot have .* 2 to 8"):
        weight_grid(None, bits)
    with pytest.raises(QConfigError, match=r"activations cannot have .* 2 to 8"):
        activation_grid(bits)


def test_an_unknown_grid_is_refused():
    with pytest.raises(QConfigError, match=r"'nonuniform'.*midrise"):
        weight_grid("nonuniform", 4)
