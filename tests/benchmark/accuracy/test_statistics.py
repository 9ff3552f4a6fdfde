from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.benchmark.accuracy.statistics import Spread, paired_bootstrap, spread
from qsam2_ao.errors import DataError


def experiment(values, counts):
    return {"sums": {"J&F": [v * c for v, c in zip(values, counts, strict=True)]}, "counts": {"J&F": counts}}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.integers(1, 5)), min_size=2, max_size=30))
def test_the_difference_is_that_of_the_means(rows):
    a, b, counts = zip(*rows, strict=True)
    counts = list(counts)
    found = paired_bootstrap([experiment(a, counts)], [experiment(b, counts)], "J&F", draws=200)
    expected = np.average(a, weights=counts) - np.average(b, weights=counts)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.low <= found.high
    swapped = paired_bootstrap([experiment(b, counts)], [experiment(a, counts)], "J&F", draws=200)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=1e-9)


def test_the_interval_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(1)
    base, gain = rng.normal(70, 20, 400), rng.normal(2, 5, 400)
    counts = [1] * 400
    found = paired_bootstrap([experiment(base + gain, counts)], [experiment(base, counts)], "J&F")
    half = 1.96 * gain.std() / np.sqrt(400)
    assert found.low == pytest.approx(gain.mean() - half, abs=0.06)
    assert found.high == pytest.approx(gain.mean() + half, abs=0.06)


def test_a_constant_difference_has_no_spread_and_seeds_are_averaged():
    ours = [experiment([60.0, 70.0], [2, 3]), experiment([64.0, 74.0], [2, 3])]
    found = paired_bootstrap(ours, [experiment([57.0, 67.0], [2, 3])], "J&F", draws=50)
    assert (found.value, found.low, found.high) == pytest.approx((5.0, 5.0, 5.0))
    assert str(found) == "+5.0 [+5.0, +5.0]"


def test_draws_repeat():
    rng = np.random.default_rng(0)
    experiments = [experiment(rng.uniform(0, 100, 20), [1] * 20) for _ in range(2)]
    assert paired_bootstrap(experiments[:1], experiments[1:], "J&F") == paired_bootstrap(
        experiments[:1], experiments[1:], "J&F"
    )


def test_other_videos_are_refused():
    with pytest.raises(DataError, match="same videos"):
        paired_bootstrap([experiment([1.0], [2])], [experiment([1.0], [3])], "J&F")
    with pytest.raises(DataError, match="seeds"):
        paired_bootstrap([experiment([1.0], [2]), experiment([1.0], [3])], [experiment([1.0], [2])], "J&F")
    with pytest.raises(DataError, match="no results"):
        paired_bootstrap([], [], "J&F")


def test_spread_over_seeds():
    assert spread([1.0, 2.0, 3.0]) == Spread(2.0, 1.0, 3)
    assert str(spread([1.0, 2.0, 3.0])) == "2.0 ± 1.0"
    assert str(spread([1.26])) == "1.3"
