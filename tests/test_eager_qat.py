from __future__ import annotations

import copy
import io

import pytest
import torch
from networks import images, network
from torch import nn
from torch.nn.utils import prune
from torchao.quantization import quantize_
from torchao.quantization.qat import QATConfig
from torchao.quantization.qat.linear import disable_linear_fake_quant, enable_linear_fake_quant

from qsam2_ao.deploy.packed import PackedIntxTensor
from qsam2_ao.eager_qat import LSCActivationConfig, LSCQATConfig, LSCWeightConfig, is_linear_or_conv
from qsam2_ao.errors import CalibrationError, NonFiniteError, QConfigError, UnsupportedLayerError
from qsam2_ao.quantizers import calibrating, range_parameters


def prepare(net, weight=None, activation=None, filter_fn=is_linear_or_conv):
    quantize_(net, LSCQATConfig(activation_config=activation, weight_config=weight, step="prepare"), filter_fn)
    return net


def convert(net, filter_fn=is_linear_or_conv):
    quantize_(net, LSCQATConfig(step="convert"), filter_fn)
    return net


def train(net, x, steps=2):
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).float().square().mean().backward()
        optimizer.step()
    return net


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, LSCActivationConfig(8), LSCActivationConfig(4)])
@pytest.mark.parametrize(
    "weight",
    [
        None,
        LSCWeightConfig(8),
        LSCWeightConfig(4),
        LSCWeightConfig(2),
        LSCWeightConfig(4, grid="mean"),
        LSCWeightConfig(4, granularity="group", group_size=12),
    ],
)
@pytest.mark.parametrize("name", ["mlp", "conv_net", "vit_block"])
def test_converted_equals_the_trained_model_to_the_bit(name, weight, activation, dtype):
    if weight is None and activation is None:
        return
    x = images().to(dtype)
    net = train(prepare(network(name).to(dtype), weight, activation), x).eval()
    converted = convert(copy.deepcopy(net))
    with torch.no_grad():
        assert torch.equal(converted(x), net(x))
    for module in converted.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and weight is not None:
            assert isinstance(module.weight, PackedIntxTensor)
            assert module.weight.bits == weight.bits


def test_ranges_are_learned_and_moved_by_a_state_dict():
    x = images()
    recipe = (LSCWeightConfig(4), LSCActivationConfig(8))
    net = prepare(network("vit_block"), *recipe)
    before = [parameter.detach().clone() for parameter in range_parameters(net)]
    assert len(before) == 12
    assert {tuple(p.shape) for p in before} == {(1,), (16,), (48,), (32,), (4,)}  # sized before an optimizer is made
    train(net, x)
    assert all(not torch.equal(a, b) for a, b in zip(before, range_parameters(net), strict=True))
    other = prepare(network("vit_block", seed=3), *recipe)
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(x), net.eval()(x))


def test_float_state_dicts_load_with_the_quantizers_keys_missing_alone():
    net = prepare(network("mlp"), LSCWeightConfig(4), LSCActivationConfig(8))
    missing, unexpected = net.load_state_dict(network("mlp", seed=5).state_dict(), strict=False)
    assert not unexpected
    assert all("_fake_quantizer." in key for key in missing)


def test_inputs_start_from_calibration_data_and_not_from_nothing():
    x = images()
    net = prepare(network("mlp"), LSCWeightConfig(4), LSCActivationConfig(8)).eval()
    with pytest.raises(CalibrationError, match=r"LSCLinear|Linear\(in_features=192"):
        net(x)
    with pytest.raises(CalibrationError, match="no range yet"):
        convert(copy.deepcopy(net))
    with torch.no_grad():
        with calibrating(net):
            net(x)
        reference = network("mlp")(x)
        assert float((convert(net)(x) - reference).norm() / reference.norm()) < 0.3


def test_torchaos_switches_work():
    x = images()
    net = train(prepare(network("mlp"), LSCWeightConfig(2), LSCActivationConfig(4)), x).eval()
    with torch.no_grad():
        quantized = net(x)
        net.apply(disable_linear_fake_quant)
        floats = nn.functional.linear(x.flatten(1), net[1].weight, net[1].bias)
        assert torch.equal(net[1](x.flatten(1)), floats)
        net.apply(enable_linear_fake_quant)
        assert torch.equal(net(x), quantized)


def test_a_converted_model_is_saved_and_loaded():
    x = images()
    net = convert(train(prepare(network("vit_block"), LSCWeightConfig(4), LSCActivationConfig(8)), x).eval())
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = convert(train(prepare(network("vit_block", seed=3), LSCWeightConfig(4), LSCActivationConfig(8)), x).eval())
    other.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        assert torch.equal(other(x), net(x))


def test_a_module_with_two_names_stays_one():
    layer = nn.Linear(4, 4)
    net = nn.ModuleDict({"first": layer, "second": nn.Sequential(layer)})
    prepare(net, LSCWeightConfig(4))
    assert net["first"] is net["second"][0]
    convert(net)
    assert isinstance(layer.weight, PackedIntxTensor)
    single = nn.Linear(4, 4)
    assert type(prepare(single, LSCWeightConfig(4))).__name__ == "LSCLinear"  # a model that is one layer


def test_linear_layers_alone_without_a_filter():
    net = network("vit_block")
    quantize_(net, LSCQATConfig(weight_config=LSCWeightConfig(4)))
    assert type(net.embed) is nn.Conv2d
    assert type(net.qkv).__name__ == "LSCLinear"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LSCWeightConfig(9), QConfigError, "2 to 8"),
        (lambda: LSCWeightConfig(4, granularity="group"), QConfigError, "group_size"),
        (lambda: LSCActivationConfig(1), QConfigError, "2 to 8"),
        (lambda: LSCQATConfig(weight_config=LSCActivationConfig(8)), QConfigError, "must be a LSCWeightConfig"),
        (lambda: LSCQATConfig(LSCWeightConfig(4)), QConfigError, "leave base_config out"),
        (lambda: LSCQATConfig(), ValueError, "Must specify"),
        (lambda: LSCQATConfig(weight_config=LSCWeightConfig(4), step="convert"), ValueError, "convert step"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_torchaos_own_config_says_which_one_to_take():
    with pytest.raises(ValueError, match="for qsam2_ao's LSCQATConfig"):
        quantize_(network("mlp"), QATConfig(weight_config=LSCWeightConfig(4), step="prepare"))
    net = prepare(network("mlp"), LSCWeightConfig(4))
    with pytest.raises(QConfigError, match=r"LSCQATConfig\(step='convert'\)"):
        quantize_(net, QATConfig(step="convert"))


def test_layers_that_cannot_be_prepared_are_refused():
    with pytest.raises(UnsupportedLayerError, match="not ConvTranspose2d"):
        prepare(
            nn.Sequential(nn.ConvTranspose2d(2, 2, 2)), LSCWeightConfig(4), filter_fn=lambda m, _: bool(m._parameters)
        )
    net = prepare(network("mlp"), LSCWeightConfig(4))
    with pytest.raises(QConfigError, match="prepared already"):
        prepare(net, LSCWeightConfig(2))
    with torch.no_grad():
        net[1].weight[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"Linear\(in_features=192"):
        convert(net)


def test_an_input_without_a_range_leaves_the_layer_as_it_was():
    early = prepare(nn.Sequential(nn.Linear(8, 2)), LSCWeightConfig(4), LSCActivationConfig(4))
    other = copy.deepcopy(early)
    with pytest.raises(CalibrationError, match="calibrate or train first"):
        convert(early.eval())
    x = torch.randn(64, 8)
    for net in (early, other):
        with calibrating(net), torch.no_grad():
            net(x)
        convert(net.eval())
    assert torch.equal(early(x), other(x))


@pytest.mark.parametrize("weight", [None, LSCWeightConfig(2)])
def test_torchs_encoder_layers_compute_with_quantized_layers_outside_training(weight):
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(3, 5, 16)
    prepare(net, weight, LSCActivationConfig(4)).eval()
    with calibrating(net), torch.no_grad():
        net(x)
    assert net.linear1.activation_fake_quantizer.is_initialized
    for model in (net, convert(copy.deepcopy(net))):
        with torch.no_grad():
            alone = model(x)
        torch.testing.assert_close(alone, model(x))  # with gradients torch calls every layer


def test_hooks_go_with_the_last_quantizer_of_a_layer():
    net = convert(prepare(nn.Sequential(nn.Linear(16, 8)), LSCWeightConfig(4)).eval())
    assert not net[0]._forward_pre_hooks


def test_nested_tensors_are_refused_with_what_to_do():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    net = prepare(nn.TransformerEncoder(layer, 1), None, LSCActivationConfig(8))
    x = torch.randn(2, 5, 16)
    net(x)
    net.eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad(), pytest.raises(UnsupportedLayerError, match="set_fastpath_enabled"):
        net(x, src_key_padding_mask=padding)


def test_a_pruned_layer_is_refused():
    net = nn.Sequential(nn.Linear(16, 8))
    prune.l1_unstructured(net[0], "weight", 0.5)
    with pytest.raises(UnsupportedLayerError, match=r"Linear\(in_features=16.*is no parameter"):
        prepare(net, LSCWeightConfig(4))
