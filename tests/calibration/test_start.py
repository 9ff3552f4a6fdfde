from __future__ import annotations

import pytest
import torch

from qsam2_ao.calibration import start
from qsam2_ao.calibration.start import start_quantizer
from qsam2_ao.calibration.vrc import output_energy
from qsam2_ao.errors import QConfigError
from qsam2_ao.quantizers import LSCFakeQuantize
from qsam2_ao.quantizers.baselines import LSQFakeQuantize


def layer(seed=0, out=24, width=64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, width, generator=generator) @ torch.randn(width, width, generator=generator)
    x[:, 3] *= 0.01
    weight = torch.randn(out, width, generator=generator)
    weight[:, 3] *= 20  # an outlier that the output hardly feels
    return weight, x.T @ x


def quantizer(bits=2, **options):
    return LSCFakeQuantize(bits, is_weight=True, **options).eval()


def test_knowing_the_inputs_starts_nearer_to_the_output():
    weight, gram = layer()
    blind, knowing = quantizer(), quantizer()
    start_quantizer(blind, weight)
    start_quantizer(knowing, weight, gram)
    assert output_energy(knowing(weight) - weight, gram) < output_energy(blind(weight) - weight, gram)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "options", [{}, {"granularity": "group", "group_size": 16}, {"granularity": "tensor"}], ids=str
)
def test_gptq_weights_are_kept_by_their_quantizer(bits, options):
    weight, gram = layer()
    plain, rounding = quantizer(bits, **options), quantizer(bits, **options)
    start_quantizer(plain, weight, gram)
    rounded = start_quantizer(rounding, weight, gram, "gptq")
    # Rows that do not reach the end of their range get a narrower one, whose steps may lie elsewhere.
    assert (rounding(rounded) - rounded).norm() <= 0.02 * rounded.norm()
    assert output_energy(rounding(rounded) - weight, gram) < output_energy(plain(weight) - weight, gram)


def test_without_inputs_nothing_is_rounded():
    weight, _ = layer()
    assert torch.equal(start_quantizer(quantizer(), weight, None, "gptq"), weight)


def test_rivals_start_by_themselves_and_are_not_rounded():
    weight, gram = layer()
    rival = LSQFakeQuantize(2, is_weight=True)
    assert torch.equal(start_quantizer(rival, weight, gram), weight)
    assert rival.scale.shape == (24,)
    with pytest.raises(QConfigError, match="needs LSC's quantizer"):
        start_quantizer(rival, weight, gram, "gptq")


def test_an_unknown_rounding_is_refused():
    weight, gram = layer()
    with pytest.raises(QConfigError, match=r"'up'.*nearest, gptq"):
        start_quantizer(quantizer(), weight, gram, "up")


@pytest.mark.parametrize(
    "options", [{}, {"granularity": "group", "group_size": 16}, {"granularity": "tensor"}], ids=str
)
def test_gptq_takes_the_best_of_several_ranges(options, monkeypatch):
    weight, gram = layer()
    errors = {}
    for multiples in ((1.0,), (0.8,), (1.0, 0.8, 1.2)):
        monkeypatch.setattr(start, "_MULTIPLES", multiples)
        difference = start_quantizer(quantizer(**options), weight, gram, "gptq").double() - weight.double()
        errors[multiples] = ((difference @ gram.double()) * difference).sum(1)
    best = errors[1.0, 0.8, 1.2]
    if options.get("granularity") == "tensor":
        assert best.sum() <= min(errors[(1.0,)].sum(), errors[(0.8,)].sum())
    else:
        assert (best <= torch.minimum(errors[(1.0,)], errors[(0.8,)])).all()
        assert (best < errors[(1.0,)]).any()
