from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.ao.quantization import PlaceholderObserver, disable_fake_quant, disable_observer

from qsam2_ao import QSAM2Error
from qsam2_ao.benchmark.accuracy.rivals import RIVALS, MinMaxFakeQuantize, rival_qconfig
from qsam2_ao.deploy.inputs import ActivationQuantizer
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError
from qsam2_ao.quantizers import LSCFakeQuantize, RangedFakeQuantize, range_parameters

METHODS = pytest.mark.parametrize("method", RIVALS)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight_quantizer(method, bits, weight=None):
    quantizer = rival_qconfig(method, bits, None).weight()
    if weight is not None:
        quantizer.initialize(weight)
    return quantizer


def activation_quantizer(method, bits, x=None):
    quantizer = rival_qconfig(method, 4, bits).activation()
    if x is not None:
        with quantizer.calibrating():
            assert quantizer(x) is x
    return quantizer


def qparams(quantizer):
    if isinstance(quantizer, MinMaxFakeQuantize):
        return quantizer.scale, quantizer.zero_point
    return quantizer.calculate_qparams()


def disturb(quantizer):
    """Move learned ranges off their start, as training does."""
    with torch.no_grad():
        for parameter in quantizer.parameters():
            parameter.mul_(1.1).add_(0.01)
    return quantizer


@METHODS
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(6, 40), (6, 4, 3, 3), (1, 7)])
@pytest.mark.parametrize("training", [True, False])
def test_weights_are_on_the_grid_of_their_own_qparams(method, bits, shape, training):
    weight = random(*shape)
    quantizer = disturb(weight_quantizer(method, bits, weight)).train(training)
    values = quantizer(weight).detach()
    scale, zero_point = (t.reshape(-1, *[1] * (len(shape) - 1)) for t in qparams(quantizer))
    codes = values / scale + zero_point
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert codes.min() >= quantizer.quant_min - 1e-3
    assert codes.max() <= quantizer.quant_max + 1e-3
    assert values.shape == weight.shape
    if method != "minmax":  # torch.ao keeps the extremes
        assert (values - weight).square().mean() < weight.square().mean()


@METHODS
@pytest.mark.parametrize("bits", [4, 8])
def test_activations_evaluate_as_they_will_be_deployed(method, bits):
    x = random(2, 5, 1000) + 0.7
    x[0, 0, 0] = 0
    quantizer = disturb(activation_quantizer(method, bits, x))
    trained = quantizer(x).detach()
    state = copy.deepcopy(quantizer.state_dict())
    values = quantizer.eval()(3 * x), quantizer(x)
    scale, zero_point = qparams(quantizer)
    deployed = ActivationQuantizer(quantizer.quant_min, quantizer.quant_max, scale, zero_point)
    assert zero_point == zero_point.round()
    assert torch.equal(values[1], deployed(x))
    assert torch.equal(values[0], deployed(3 * x))
    assert values[1][0, 0, 0] == 0
    # Only a value between two codes may fall to the other one in training.
    apart = (values[1] - trained).abs()
    assert apart.max() <= 1.001 * scale
    assert (apart > 1e-5).double().mean() < 1e-3
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, state[key])


@METHODS
def test_a_frozen_range_learns_nothing_and_passes_gradients(method):
    x = random(500)
    quantizer = activation_quantizer(method, 4, x)
    quantizer.apply(disable_observer)
    state = copy.deepcopy(quantizer.state_dict())
    leaf = (2 * x).requires_grad_()
    quantizer(leaf).sum().backward()
    assert set(leaf.grad.unique().tolist()) == {0.0, 1.0}
    assert all(not parameter.grad.any() for parameter in quantizer.parameters())
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())
    quantizer.apply(disable_fake_quant)
    assert quantizer(x) is x


@METHODS
def test_an_activation_is_not_evaluated_before_it_saw_data(method):
    quantizer = activation_quantizer(method, 8).eval()
    quantizer.name = "block.input"
    with pytest.raises(CalibrationError, match=r"'block\.input'.*calibration data"):
        quantizer(random(4))
    with pytest.raises(NonFiniteError, match=r"'block\.input'"), quantizer.calibrating():
        quantizer(torch.tensor([1.0, float("nan")]))
    with pytest.raises(CalibrationError, match="initialize"), weight_quantizer(method, 4).calibrating():
        pass


@METHODS
def test_an_activation_starts_from_the_first_training_batch(method):
    x = random(400)
    calibrated, trained = activation_quantizer(method, 4, x), activation_quantizer(method, 4)
    trained(x)
    assert trained.is_initialized
    for a, b in zip(qparams(calibrated), qparams(trained), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", [name for name in RIVALS if name != "minmax"])
def test_training_refuses_what_is_not_finite(method):
    quantizer = activation_quantizer(method, 8, random(50))
    with pytest.raises(NonFiniteError):
        quantizer(torch.tensor([1.0, float("nan")]))


@METHODS
@pytest.mark.parametrize("is_weight", [True, False])
def test_state_travels(method, is_weight):
    x = random(6, 40)
    quantizer = disturb(weight_quantizer(method, 4, x) if is_weight else activation_quantizer(method, 4, x)).eval()
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert torch.equal(other(x), quantizer(x))
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    fresh = (weight_quantizer(method, 4) if is_weight else activation_quantizer(method, 4)).eval()
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(x), quantizer(x))


@pytest.mark.parametrize("method", [name for name in RIVALS if name != "minmax"])
def test_ranges_stay_float32_in_a_model_of_a_shorter_type(method):
    x = random(6, 40)
    quantizer = weight_quantizer(method, 4, x)
    state = copy.deepcopy(quantizer.state_dict())
    quantizer.bfloat16()
    assert quantizer(x.bfloat16()).dtype == torch.bfloat16
    for key, value in quantizer.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["lsq", "lsq+", "torchao"])
@pytest.mark.parametrize("is_weight", [True, False])
def test_a_scale_that_a_step_made_negative_is_the_smallest_one(method, is_weight):
    x = random(6, 40)
    quantizer = weight_quantizer(method, 4, x) if is_weight else activation_quantizer(method, 4, x)
    with torch.no_grad():
        quantizer.scale[-1] = -1.0
    for training in (False, True):
        values = quantizer.train(training)(x).detach()
        scale, _ = qparams(quantizer)
        assert 0 < scale[-1] < 1e-6
        assert float(values[-1].abs().max()) <= 16 * float(scale[-1])
    assert quantizer.scale.min() > 0


@METHODS
def test_learned_ranges_are_found(method):
    learned = {"minmax": 0, "lsq": 2, "lsq+": 3, "pact-sawb": 2, "torchao": 3}
    layers = nn.ModuleList([weight_quantizer(method, 4, random(3, 9)), activation_quantizer(method, 4, random(9))])
    ranges = range_parameters(nn.Sequential(nn.Linear(2, 2), layers))
    assert len(ranges) == learned[method]
    assert all(parameter.requires_grad for parameter in ranges)
    lsc = LSCFakeQuantize(4)
    assert [id(parameter) for parameter in range_parameters(lsc)] == [id(lsc.log_alpha)]
    assert all(isinstance(quantizer, RangedFakeQuantize) for quantizer in (*layers, lsc))


def test_bad_settings_are_refused():
    with pytest.raises(QConfigError, match="unknown rival 'lsc'"):
        rival_qconfig("lsc", 4, 8)
    for bits in ((1, 8), (9, 8), (4, 1), (4, 16)):
        with pytest.raises(QSAM2Error):
            rival_qconfig("lsq", *bits)
    assert rival_qconfig("lsq", 4, None).activation is PlaceholderObserver
