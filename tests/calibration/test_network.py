from __future__ import annotations

import pytest
import torch
from networks import images, network
from torch import nn
from torch.utils.data import DataLoader
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

from qsam2_ao import LSCFakeQuantize, lsc_qconfig
from qsam2_ao.calibration.network import calibrate_network
from qsam2_ao.calibration.vrc import solve_vrc
from qsam2_ao.errors import CalibrationError, NonFiniteError
from qsam2_ao.pt2e import QSAM2Quantizer, eval_exported
from qsam2_ao.quantizers import calibrating

BATCHES = [images(seed=seed) for seed in range(3)]


def exported(net, training=True):
    return torch.export.export(net.train(training), (BATCHES[0],)).module()


def inputs_of(net, name):
    rows = []
    hook = net.get_submodule(name).register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    with torch.no_grad():
        for batch in BATCHES:
            net(batch)
    hook.remove()
    return torch.cat([x.movedim(1, -1).flatten(0, -2) if x.dim() == 4 else x.flatten(0, -2) for x in rows]).double()


def test_weights_are_the_ridge_regression_of_their_own_outputs():
    """Without biases nothing but the weight can change: W G (G + lambda)^-1 in float64."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 6, bias=False),
        nn.Linear(6, 3, bias=False),
    ]
    net = nn.Sequential(*layers).eval()
    calibrated, report = calibrate_network(net, BATCHES, damping=0.01, tolerance=1.0)
    assert [entry.layer for entry in report.layers] == ["0", "3", "4"]
    for name in ("0", "4"):
        x = inputs_of(net, name)
        expected = solve_vrc(net.get_submodule(name).weight, x.T @ x, 0.01)
        torch.testing.assert_close(calibrated.get_submodule(name).weight, expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(calibrated.get_submodule(name).weight, net.get_submodule(name).weight)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["conv_net", "vit_block"])
def test_an_exported_graph_is_calibrated_as_its_module(net):
    module = network(net).eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    of_module, modules_report = calibrate_network(module, BATCHES, damping=0.03, tolerance=1.0)
    graph = exported(network(net))
    of_graph, graphs_report = calibrate_network(graph, [(batch,) for batch in BATCHES], damping=0.03, tolerance=1.0)
    names = [entry.layer for entry in modules_report.layers]
    assert sorted(names) == sorted(entry.layer for entry in graphs_report.layers)
    assert ("6" in names) if net == "conv_net" else ("embed" not in names)  # 1x1 convolutions alone
    weights = dict(of_graph.named_parameters())
    for name, weight in of_module.named_parameters():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert all(torch.equal(value, before[key]) for key, value in graph.state_dict().items())


@pytest.mark.slow
def test_the_quantizers_recipe_chooses_the_layers():
    graph = exported(network("vit_block"))
    quantizer = QSAM2Quantizer(lsc_qconfig(2, 8))
    chosen = {"qkv", "proj"}
    quantizers = {name: make for name, make in quantizer.weight_quantizers(graph).items() if name in chosen}
    assert {make().bits for make in quantizers.values()} == {2}
    calibrated, report = calibrate_network(graph, BATCHES, quantizers=quantizers)
    assert {entry.layer for entry in report.layers} == chosen
    prepared = prepare_qat_pt2e(calibrated, quantizer)
    with torch.no_grad(), calibrating(prepared):
        prepared(BATCHES[0])
    assert all(module.is_initialized for module in prepared.modules() if isinstance(module, LSCFakeQuantize))
    assert bool(eval_exported(prepared)(BATCHES[1]).isfinite().all())


def test_memory_is_kept_by_more_passes():
    net = network("mlp").eval()
    once, _ = calibrate_network(net, BATCHES, damping=0.01)
    thrice, report = calibrate_network(net, iter(BATCHES), damping=0.01, max_gram_bytes=1)
    assert report.passes == 3
    for a, b in zip(once.parameters(), thrice.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_run_of_the_users_own():
    net = network("mlp").eval()
    batches = [{"image": batch} for batch in BATCHES]
    calibrated, _ = calibrate_network(net, batches, damping=0.01, run=lambda model, batch: model(batch["image"]))
    expected, _ = calibrate_network(net, BATCHES, damping=0.01)
    for a, b in zip(calibrated.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CalibrationError, match="leave `run` out"):
        calibrate_network(exported(network("mlp")), batches, run=lambda model, batch: model(batch["image"]))


def test_what_cannot_be_calibrated_is_refused():
    net = network("mlp").eval()
    with pytest.raises(CalibrationError, match="no calibration inputs"):
        calibrate_network(net, [])
    with pytest.raises(CalibrationError, match="no linear layer"):
        calibrate_network(nn.ReLU(), BATCHES)
    with pytest.raises(NonFiniteError, match="'1'"):
        calibrate_network(net, [torch.full((2, 3, 8, 8), float("nan"))])
    tied = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1))
    tied[2].weight = tied[0].weight
    with pytest.raises(CalibrationError, match="layer '2' shares its weight with '0'"):
        calibrate_network(tied, BATCHES)
    factory = lsc_qconfig(4, 8).weight
    with pytest.raises(CalibrationError, match=r"no layer '7'"):
        calibrate_network(net, BATCHES, quantizers={"1": factory, "7": factory})


def test_layers_may_be_called_by_keyword_and_batches_have_no_length():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, 4)

        def forward(self, x):
            return self.fc(input=x.flatten(1))

    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(BATCHES)

    net = Keyword()
    found, _ = calibrate_network(net, DataLoader(Endless(), batch_size=None), damping=0.01)
    expected, _ = calibrate_network(nn.Sequential(nn.Flatten(), net.fc), BATCHES, damping=0.01)
    assert torch.equal(found.fc.weight, expected[1].weight)
    assert not torch.equal(found.fc.weight, net.fc.weight)


def test_what_torch_reads_without_calling_it_keeps_its_weight(caplog):
    net = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    calibrated, report = calibrate_network(net, [torch.randn(4, 10, 16) for _ in range(3)])
    assert [layer.layer for layer in report.layers] == ["linear1", "linear2"]
    assert torch.equal(calibrated.self_attn.out_proj.weight, net.self_attn.out_proj.weight)
    assert "self_attn.out_proj keeps its weight" in caplog.text


class Mixed(nn.Module):
    """Layers that VRC has nothing to do with beside one that it has."""

    def __init__(self):
        super().__init__()
        self.lstm, self.matrix, self.inside = nn.LSTM(8, 8), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.einsum("tbc,dc->tbd", self.lstm(x)[0], self.matrix)
        with torch.autocast("cpu", enabled=False):
            x = self.inside(x)
        return self.last(x)


def test_only_layers_are_calibrated_and_those_inside_blocks_are_named(caplog):
    x = torch.randn(5, 3, 8)
    graph = torch.export.export(Mixed().train(), (x,)).module()
    with caplog.at_level("WARNING"):
        _, report = calibrate_network(graph, [x])
    assert [layer.layer for layer in report.layers] == ["last"]
    assert "keep their weights: inside (inside wrap_with_autocast); export the network" in caplog.text
