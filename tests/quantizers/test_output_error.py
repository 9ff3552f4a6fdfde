from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.quantizers.output_error import held_down, measures_of, typical_energy, worst_ratio


def gram(width=20, seed=0):
    x = torch.randn(200, width, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return x.T @ x


def test_without_massive_inputs_nothing_changes():
    g = gram()
    assert typical_energy(g) == pytest.approx(float(g.diagonal().mean()))
    assert held_down(g) is g
    assert [measure is g for measure in measures_of(g)] == [True]
    silent = torch.zeros(3, 3)
    assert typical_energy(silent) == 0.0
    assert held_down(silent) is silent


@settings(max_examples=30, deadline=None)
@given(
    channels=st.sets(st.integers(0, 19), min_size=1, max_size=6),
    factor=st.sampled_from([20.0, 1e3, 1e5]),
    seed=st.integers(0, 99),
)
def test_massive_inputs_are_held_down_to_a_hundred_medians(channels, factor, seed):
    g = gram(seed=seed)
    scale = torch.ones(20, dtype=torch.double)
    scale[list(channels)] = factor
    massive = g * scale * scale[:, None]
    limit = 100 * float(massive.diagonal().median())
    held = held_down(massive)
    torch.testing.assert_close(held.diagonal(), massive.diagonal().clamp_max(limit))
    correlation = g / torch.outer(g.diagonal().sqrt(), g.diagonal().sqrt())
    torch.testing.assert_close(held / torch.outer(held.diagonal().sqrt(), held.diagonal().sqrt()), correlation)
    assert typical_energy(massive) == pytest.approx(float(held.diagonal().mean()))
    assert typical_energy(massive) < 40 * float(g.diagonal().mean())
    first, second = measures_of(massive)
    assert first is massive
    assert torch.equal(second, held)


def test_errors_compare_by_the_measure_in_which_they_do_worst():
    errors = torch.tensor([[1.0, 2.0, 0.0, 1.0], [3.0, 1.0, 0.0, 0.0]])
    references = torch.tensor([[2.0, 1.0, 0.0, 0.0], [2.0, 2.0, 0.0, 1.0]])
    assert worst_ratio(errors, references).tolist() == [1.5, 2.0, 1.0, float("inf")]
