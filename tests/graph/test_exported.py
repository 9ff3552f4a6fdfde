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
