from __future__ import annotations

import torch
from torch import nn

from qsam2_ao.graph.exported import exported_layers


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Flatten(2))
        self.mixer = nn.Conv1d(4, 4, 1)
        self.fc = nn.Linear(16, 16)
        self.normalized = torch.nn.utils.parametrizations.weight_norm(nn.Linear(16, 4))
        self.attention = nn.MultiheadAttention(16, 2)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)
        self.matrix = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        up = self.up(self.stem[0](x))
        x = self.fc(self.fc(self.mixer(self.stem(x)))) @ self.matrix
        x = x @ x.transpose(1, 2) @ x + self.attention(x, x, x, need_weights=False)[0]
        return self.normalized(x), up


def test_layers_keep_the_names_of_their_modules():
    graph = torch.export.export(Network(), (torch.randn(2, 3, 4, 4),)).module()
    found = [(layer.name, layer.kind and layer.kind.__name__) for layer in exported_layers(graph, "net")]
    assert found == [
        ("net.stem.0", "Conv2d"),
        ("net.up", None),
        ("net.stem.0", "Conv2d"),
        ("net.mixer", "Conv1d"),
        ("net.fc", "Linear"),
        ("net.fc", "Linear"),
        ("net.matrix", None),
        ("net.attention.in_proj_weight", "Linear"),
        ("net.attention.out_proj", "Linear"),
        ("net.normalized", "Linear"),
    ]


def test_one_layer_alone_is_named_by_its_path():
    graph = torch.export.export(nn.Linear(4, 2), (torch.randn(1, 4),)).module()
    assert [layer.name for layer in exported_layers(graph)] == [""]
    assert [layer.name for layer in exported_layers(graph, "obj_ptr_tpos_proj")] == ["obj_ptr_tpos_proj"]


class Blocks(nn.Module):
    """Operations with weights inside graphs of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.inner = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.a(x).relu()
        with torch.no_grad():
            x = self.b(x)
        x = torch.cond(x.sum() > 0, lambda x: self.c(x), lambda x: x @ (2 * self.inner), (x,))
        return self.d(x)


def test_layers_inside_blocks_are_found_and_have_no_kind():
    graph = torch.export.export(Blocks(), (torch.randn(2, 4),)).module()
    found = {layer.name: (layer.kind, layer.block) for layer in exported_layers(graph)}
    assert found.pop("a") == (None, "wrap_with_autocast")
    assert found.pop("b") == (None, "wrap_with_set_grad_enabled")
    assert found.pop("c") == (None, "cond")
    assert found.pop("d") == (nn.Linear, "")
    assert list(found.values()) == [(None, "cond")]  # a product with what is computed of a parameter has no name


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.lstm, self.rnn = nn.GRU(4, 4), nn.LSTM(4, 4), nn.RNN(4, 4)
        self.bilinear, self.matrix = nn.Bilinear(4, 4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.rnn(self.lstm(self.gru(x)[0])[0])[0]
        return torch.einsum("btc,dc->btd", self.bilinear(x, x), self.matrix)


def test_other_operations_with_weights_are_found():
    graph = torch.export.export(Recurrent(), (torch.randn(2, 3, 4),)).module()
    found = {layer.name: layer.kind for layer in exported_layers(graph)}
    weights = ("gru.weight_ih_l0", "lstm.weight_ih_l0", "rnn.weight_ih_l0", "bilinear", "matrix")
    assert found == dict.fromkeys(weights)
