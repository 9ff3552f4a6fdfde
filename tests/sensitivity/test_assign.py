"""The knapsack against brute force, budgets, and assignments on the real model."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.errors import QConfigError
from qsam2_ao.sensitivity import (
    LayerSensitivity,
    Sensitivity,
    assign_bits,
    budget_bytes,
    quantizable_layers,
    uniform_bytes,
)
from qsam2_ao.sensitivity.assign import Choice, choose
from qsam2_ao.sensitivity.assignment import is_first_or_last

choices = st.builds(
    Choice,
    loss=st.one_of(st.floats(-2, 10), st.floats(0, 1e-6), st.just(0.0)),
    size=st.one_of(st.integers(0, 20), st.integers(10**6, 10**8)),
)
groups = st.lists(st.lists(choices, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=150, deadline=None)
@given(groups, st.floats(0, 1))
def test_as_good_as_brute_force(options: list[list[Choice]], share: float):
    smallest = sum(min(c.size for c in group) for group in options)
    largest = sum(max(c.size for c in group) for group in options)
    budget = smallest + int(share * (largest - smallest))
    best = min(
        sum(c.loss for c in combination)
        for combination in itertools.product(*options)
        if sum(c.size for c in combination) <= budget
    )
    picked = [group[k] for group, k in zip(options, choose(options, budget), strict=True)]
    assert sum(c.size for c in picked) <= budget
    spread = max(c.loss for group in options for c in group) - min(c.loss for group in options for c in group)
    assert sum(c.loss for c in picked) <= best + 1e-9 * max(spread, 1e-30)


@settings(max_examples=50, deadline=None)
@given(groups)
def test_an_infeasible_budget_names_the_smallest_size(options: list[list[Choice]]):
    smallest = sum(min(c.size for c in group) for group in options)
    with pytest.raises(QConfigError, match=f"smallest possible size is {smallest:,} bytes"):
        choose(options, smallest - 1)
    assert sum(group[k].size for group, k in zip(options, choose(options, smallest), strict=True)) == smallest


@pytest.fixture(scope="module")
def sensitivity(model: Any) -> Sensitivity:
    """Losses as of uniform noise: 4 times less for every bit, more for the first layers."""
    layers = quantizable_layers(model)
    records = [
        LayerSensitivity(layer.name, layer.region, bits, layer.packed_bytes(bits), 4.0**-bits / (1 + k), {})
        for k, layer in enumerate(layers.values())
        for bits in (2, 3, 4, 8)
    ]
    return Sensitivity("sqnr", tuple(layers.values()), tuple(records), {})


def test_at_the_size_of_uniform_bits_it_loses_less(model: Any, sensitivity: Sensitivity):
    layers = quantizable_layers(model)
    inner = [name for name in layers if not is_first_or_last(name)]
    for bits in (2, 3, 4):
        budget = budget_bytes(f"w{bits}", model)
        assignment = assign_bits(sensitivity, budget)
        assert set(assignment.bits) == set(inner)
        uniform = sum(sensitivity.loss(name, bits) for name in inner)
        assert assignment.bytes <= budget == assignment.budget
        assert assignment.loss == pytest.approx(sum(sensitivity.loss(n, b) for n, b in assignment.bits.items()))
        if bits == 2:
            assert set(assignment.bits.values()) == {2}
        else:
            assert assignment.loss < uniform
            assert len(set(assignment.bits.values())) > 1


def test_budget_edges(model: Any, sensitivity: Sensitivity):
    layers = quantizable_layers(model)
    smallest = uniform_bytes(layers, 2)
    assert set(assign_bits(sensitivity, smallest).bits.values()) == {2}
    with pytest.raises(QConfigError, match=f"smallest possible size is {smallest:,} bytes"):
        assign_bits(sensitivity, smallest - 1)
    assert set(assign_bits(sensitivity, 10**9).bits.values()) == {8}
    # With the first and last layers to be chosen too, less is possible.
    covering = assign_bits(sensitivity, smallest - 1, first_and_last=True)
    assert set(covering.bits) == set(layers)
    assert covering.bytes < smallest


def test_nothing_to_assign(sensitivity: Sensitivity):
    edge = tuple(layer for layer in sensitivity.layers if is_first_or_last(layer.name))
    with pytest.raises(QConfigError, match="only first and last layers"):
        assign_bits(Sensitivity("sqnr", edge, sensitivity.records, {}), 10**9)


def test_ways_to_write_a_budget(model: Any):
    layers = quantizable_layers(model)
    values = sum(layer.values for layer in layers.values())
    assert budget_bytes("w3", layers) == budget_bytes("w3", model) == uniform_bytes(layers, 3)
    assert budget_bytes("w8", layers) == sum(layer.packed_bytes(8) for layer in layers.values())
    assert budget_bytes("3.5", layers) == int(3.5 * values / 8)
    assert budget_bytes("8", layers) == values
    assert budget_bytes("1000000", layers) == 1_000_000
    for wrong in ("w1", "w9", "three", "-3", "0", "nan", "inf", ""):
        with pytest.raises(QConfigError, match="a budget is w2 to w8"):
            budget_bytes(wrong, layers)
