from __future__ import annotations

import math

import pytest
import torch

from qsam2_ao.quantizers import alpha_search
from qsam2_ao.quantizers.alpha_search import quantize_with_alpha, search_alpha
from qsam2_ao.quantizers.grids import weight_grid
from qsam2_ao.quantizers.statistics import sum_rows, weight_statistics


def error(weight, alpha, grid, granularity, group):
    stats = weight_statistics(weight, granularity, group, zero_centred=grid.zero_centred)
    quantized = quantize_with_alpha(weight, stats, alpha, grid, group)
    return sum_rows((quantized - weight).square(), granularity, group)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("granularity", "group"), [("tensor", None), ("channel", None), ("group", 24)])
@pytest.mark.parametrize("tail", ["normal", "heavy"])
def test_found_range_is_close_to_a_dense_search(bits, granularity, group, tail):
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(6, 100, generator=generator)
    if tail == "heavy":
        weight = weight.sign() * weight.abs().pow(3)
    grid = weight_grid(None, bits)
    stats = weight_statistics(weight, granularity, group, zero_centred=True)
    alpha = search_alpha(weight, stats, grid, granularity, group)
    found = error(weight, alpha, grid, granularity, group)
    widest = torch.maximum(stats.high, -stats.low) / stats.std
    dense = torch.stack([error(weight, widest * r, grid, granularity, group) for r in torch.linspace(0.02, 1, 400)])
    assert bool((alpha > 0).all())
    # Root mean square; with 8 bits the error of so few elements jumps from one range to the next.
    ratio = math.sqrt(found.sum().item() / dense.amin(0).sum().item())
    assert ratio <= (1.05 if bits == 8 else 1.01)


def test_known_optimum_of_two_bits_on_a_normal_weight():
    weight = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    grid = weight_grid("midrise", 2)
    stats = weight_statistics(weight, "channel", zero_centred=True)
    alpha = search_alpha(weight, stats, grid, "channel")
    # The optimal uniform four-level quantizer of a normal variable has step 0.9957 and distortion 0.1188.
    assert alpha.item() * 2 / 3 == pytest.approx(0.9957, abs=0.03)
    assert error(weight, alpha, grid, "channel", None).item() / 200_000 == pytest.approx(0.1188, abs=0.002)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_chunks_change_nothing(monkeypatch, granularity):
    weight = torch.randn(37, 50)
    grid = weight_grid(None, 3)
    stats = weight_statistics(weight, granularity, zero_centred=True)
    whole = search_alpha(weight, stats, grid, granularity)
    monkeypatch.setattr(alpha_search, "_CHUNK_ELEMENTS", 300)
    torch.testing.assert_close(search_alpha(weight, stats, grid, granularity), whole)


@pytest.mark.parametrize(("granularity", "group"), [("tensor", None), ("channel", None), ("group", 16)])
def test_gram_matrix_lowers_the_output_error(granularity, group):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 40, generator=generator)
    inputs = torch.randn(500, 40, generator=generator) * torch.logspace(-2, 1, 40)
    gram = inputs.T @ inputs
    grid = weight_grid(None, 3)
    stats = weight_statistics(weight, granularity, group, zero_centred=True)

    def output_error(alpha):
        difference = quantize_with_alpha(weight, stats, alpha, grid, group) - weight
        if granularity == "group":  # independent groups, as documented
            blocks = torch.block_diag(*[gram[i : i + 16, i : i + 16] for i in range(0, 40, 16)])
            return float(((difference @ blocks) * difference).sum())
        return float(((difference @ gram) * difference).sum())

    plain = search_alpha(weight, stats, grid, granularity, group)
    informed = search_alpha(weight, stats, grid, granularity, group, gram)
    assert output_error(informed) < output_error(plain)
