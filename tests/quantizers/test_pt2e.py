"""LSC's quantizers in a Quantizer that knows nothing of this package: prepare, train, convert."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
from networks import images, network
from torch import nn
from torchao.quantization.pt2e import move_exported_model_to_eval, qat_utils
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from qsam2_ao import LSCFakeQuantize
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError, UnsupportedLayerError
from qsam2_ao.pt2e import eval_exported
from qsam2_ao.quantizers import calibrating

_LAYERS = (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default)
_QD = torch.ops.quantized_decomposed
_INT8 = (_QD.dequantize_per_channel.default, _QD.dequantize_per_tensor.default)


class UsersQuantizer(Quantizer):
    """Specs as torchao's tutorials write them, with our constructors."""

    def __init__(self, weight, activation=None, share=False):
        self.weight, self.activation, self.share = weight, activation, share

    def annotate(self, model):
        first = None
        for node in model.graph.nodes:
            if node.target in _LAYERS:
                source, weight = node.args[:2]
                specs = {source: self.activation}
                specs[weight] = SharedQuantizationSpec(first) if self.share and first else self.weight
                first = first or (weight, node)
                node.meta["quantization_annotation"] = QuantizationAnnotation(specs, _annotated=True)
        return model

    def validate(self, model):
        pass


def weight_spec(dtype=torch.int8, **settings):
    return QuantizationSpec(dtype, LSCFakeQuantize.with_args(is_weight=True, **settings))


def input_spec(dtype=torch.uint8, **settings):
    return QuantizationSpec(dtype, LSCFakeQuantize.with_args(**settings))


def exported(module, *inputs):
    return torch.export.export(module.train(), inputs).module()


def train(prepared, x, steps=3):
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        prepared(x).square().mean().backward()
        optimizer.step()
    return eval_exported(prepared)


def codes(converted):
    """The integer weights of a converted graph."""
    nodes = [node.all_input_nodes[0] for node in converted.graph.nodes if node.target in _INT8]
    return [getattr(converted, node.target) for node in nodes if node.op == "get_attr"]


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp", "plain_conv_net", "vit_block"])
@pytest.mark.parametrize(
    ("bits", "grid"),
    [(8, None), (8, "asymmetric"), (4, None), (4, "symmetric"), (4, "asymmetric"), (2, None), (2, "asymmetric")],
)
def test_converted_equals_the_trained_model(net, bits, grid):
    x = images()
    quantizer = UsersQuantizer(weight_spec(bits=bits, grid=grid))
    prepared = train(prepare_qat_pt2e(exported(network(net), x), quantizer), x)
    with torch.no_grad():
        expected = prepared(x)
        converted = convert_pt2e(prepared)
        torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-6)
    assert codes(converted)
    for weight in codes(converted):
        assert weight.dtype == torch.int8
        assert len(weight.unique()) <= 2**bits
        if bits < 8 and grid is None:
            assert bool((weight % 2 != 0).all())  # the mid-rise grid in half steps


@pytest.fixture
def patterns_that_may_be_found(monkeypatch):
    """Of the hundred patterns that torchao exports to look for: those of 2-D, per channel, without a bias."""

    def of_conv2d(whole):
        return lambda graph, conv, *inputs, **where: (
            whole(graph, conv, *inputs, **where) if conv is nn.functional.conv2d else graph
        )

    def product(*options):
        return (option for option in itertools.product(*options) if option[:3] == (True, False, False))

    for name in ("_fuse_conv_bn_qat_helper", "_fold_conv_bn_qat_helper"):
        monkeypatch.setattr(qat_utils, name, of_conv2d(getattr(qat_utils, name)))
    monkeypatch.setattr(qat_utils, "itertools", SimpleNamespace(product=product))


@pytest.mark.slow
@pytest.mark.usefixtures("patterns_that_may_be_found")
def test_batch_normalization_is_folded_into_weights_on_their_grid():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = images()
    prepared = train(prepare_qat_pt2e(exported(net, x), UsersQuantizer(weight_spec(bits=4), input_spec(bits=8))), x)
    with torch.no_grad():
        expected = prepared(x)
        converted = convert_pt2e(prepared)
        result = converted(x)
    assert not any("batch_norm" in str(node.target) or "mul" in str(node.target) for node in converted.graph.nodes)
    assert all(bool((weight % 2 != 0).all()) for weight in codes(converted))
    assert float((result - expected).norm() / expected.norm()) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("net", ["mlp", "plain_conv_net", "vit_block"])
@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.uint8), (4, torch.int8)])
def test_inputs_are_quantized_as_in_training(net, bits, dtype):
    x = images()
    quantizer = UsersQuantizer(weight_spec(bits=4), input_spec(dtype, bits=bits))
    prepared = train(prepare_qat_pt2e(exported(network(net), x), quantizer), x)
    with torch.no_grad():
        expected = prepared(x)
        result = convert_pt2e(copy.deepcopy(prepared))(x)
    # torch multiplies by 1 / scale where training divides: what lies between two codes may fall to either.
    close = torch.isclose(result, expected, rtol=1e-5, atol=1e-6)
    assert float(close.float().mean()) > 0.9
    assert float((result - expected).norm() / expected.norm()) < (0.01 if bits == 8 else 0.1)


@pytest.mark.slow
def test_torchaos_own_switch_to_evaluation_is_enough():
    """It leaves our quantizers in training mode; what they see then must not move the converted ranges."""
    quantizer = UsersQuantizer(weight_spec(bits=8), input_spec(bits=8))
    prepared = prepare_qat_pt2e(exported(network("mlp"), images()), quantizer)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.05)
    for _ in range(3):
        prepared(images()).square().mean().backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)
    unseen = 10 * images(seed=5)
    for _ in range(5):
        expected = prepared(unseen).detach()
    result = convert_pt2e(prepared)(unseen)
    assert float((result - expected).norm() / expected.norm()) < 0.005


def test_unfolded_graphs_and_per_tensor_weights_convert_too():
    x = images()
    spec = weight_spec(bits=4, granularity="tensor")
    prepared = train(prepare_qat_pt2e(exported(network("vit_block"), x), UsersQuantizer(spec)), x)
    with torch.no_grad():
        expected = prepared(x)
        converted = convert_pt2e(prepared, fold_quantize=False)
        torch.testing.assert_close(converted(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"bits": 4, "grid": "mean"}, QConfigError, "choose grid='midrise'"),
        ({"bits": 8, "grid": "midrise"}, QConfigError, "choose grid='symmetric'"),
        ({"bits": 4, "granularity": "group", "group_size": 8}, UnsupportedLayerError, "granularity='channel'"),
    ],
)
def test_what_int8_cannot_hold_is_refused(settings, error, message):
    x = images()
    prepared = train(prepare_qat_pt2e(exported(network("mlp"), x), UsersQuantizer(weight_spec(**settings))), x, 1)
    with pytest.raises(error, match=message):
        convert_pt2e(prepared)


def test_weights_of_one_shared_quantizer_keep_their_own_ranges():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        net[1].weight *= 10
    x = torch.randn(4, 8)
    quantizer = UsersQuantizer(weight_spec(bits=4), share=True)
    prepared = train(prepare_qat_pt2e(exported(net, x), quantizer), x)
    assert sum(isinstance(module, LSCFakeQuantize) for module in prepared.modules()) == 1
    with torch.no_grad():
        expected = prepared(x)
        torch.testing.assert_close(convert_pt2e(prepared)(x), expected, rtol=1e-5, atol=1e-6)


class Tied(nn.Module):
    """One weight in a quantized layer twice, and in float once."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x).relu()) @ self.layer.weight


class Computed(nn.Module):
    """Weights that are no parameters: transposed, scaled, and weight-normalized."""

    def __init__(self):
        super().__init__()
        self.transposed, self.scaled = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(4, 6))
        self.normalized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x):
        x = nn.functional.linear(x, self.transposed.t())
        return self.normalized(nn.functional.linear(x, self.scaled * 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("net", [Tied, Computed])
def test_weights_in_other_uses_and_computed_ones(net):
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    prepared = train(prepare_qat_pt2e(exported(net(), x), UsersQuantizer(weight_spec(bits=4))), x)
    with torch.no_grad():
        expected = prepared(x)
        torch.testing.assert_close(convert_pt2e(prepared)(x), expected, rtol=1e-5, atol=1e-6)


class Dynamic(nn.Module):
    def forward(self, x):
        return nn.functional.linear(x, x)


def test_a_weight_made_of_the_input_is_refused():
    x = torch.randn(4, 8)
    prepared = prepare_qat_pt2e(exported(Dynamic(), x), UsersQuantizer(weight_spec(bits=4, granularity="tensor")))
    prepared(x)
    with pytest.raises(UnsupportedLayerError, match="is_weight=False"):
        convert_pt2e(prepared)


def test_a_diverged_weight_and_an_input_without_a_range_are_refused():
    x = images()
    prepared = prepare_qat_pt2e(exported(network("mlp"), x), UsersQuantizer(weight_spec(bits=4), input_spec(bits=8)))
    with pytest.raises(CalibrationError, match="no range yet"):
        convert_pt2e(copy.deepcopy(prepared))
    prepared(x)
    with torch.no_grad():
        next(p for name, p in prepared.named_parameters() if name.endswith("weight"))[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        convert_pt2e(prepared)


def test_post_training_quantization_calibrates_inputs():
    x = images()
    graph = torch.export.export(network("conv_net").eval(), (x,)).module()
    prepared = prepare_pt2e(graph, UsersQuantizer(weight_spec(bits=8), input_spec(bits=8)))
    with torch.no_grad():
        with calibrating(prepared):
            for seed in (1, 2):
                prepared(images(seed=seed))
        expected = eval_exported(prepared)(x)
        result = convert_pt2e(prepared)(x)
        reference = network("conv_net").eval()(x)
    assert float((result - expected).norm() / expected.norm()) < 0.01
    assert float((result - reference).norm() / reference.norm()) < 0.05


@pytest.mark.slow
def test_a_state_dict_moves_a_training_to_another_graph():
    x = images()

    def prepare():
        quantizer = UsersQuantizer(weight_spec(bits=4), input_spec(bits=8))
        return prepare_qat_pt2e(exported(network("mlp"), x), quantizer)

    trained, fresh = train(prepare(), x), prepare()
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(eval_exported(fresh)(x), trained(x))
