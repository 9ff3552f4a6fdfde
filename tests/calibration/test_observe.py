"""What is observed of layers' inputs while a model runs on images."""

from __future__ import annotations

import torch

from qsam2_ao.calibration import load_images
from qsam2_ao.calibration.observe import observe_inputs
from qsam2_ao.models.embedded import build_embedded

QKV = "image_encoder.trunk.blocks.0.attn.qkv"
NECK = "image_encoder.neck.convs.3.conv"


def test_gram_matrices_are_those_of_the_layers_inputs():
    model = build_embedded()
    seen = []
    layers = {QKV: model.get_submodule(QKV), NECK: model.get_submodule(NECK)}
    hook = layers[QKV].register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    observers = observe_inputs(model, layers, load_images([torch.rand(3, 60, 80) for _ in range(2)]))
    hook.remove()
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen]).double()
    torch.testing.assert_close(observers[QKV].gram, rows.T @ rows, rtol=1e-5, atol=1e-3)
    assert observers[QKV].n == len(rows)
    assert observers[NECK].gram.shape == (32, 32)
    assert not layers[QKV]._forward_pre_hooks
