from __future__ import annotations

import torch
import torch.ao.nn.quantized.reference as nnqr
from torch import nn

from qsam2_ao import lsc_qconfig
from qsam2_ao.recipe.backend import QATConv2d, QATLinear, qsam2_backend_config


def test_float_and_qat_layers_each_have_a_pattern() -> None:
    patterns = {config.pattern: config for config in qsam2_backend_config().configs}
    assert patterns[nn.Linear].qat_module is patterns[QATLinear].qat_module is QATLinear
    assert patterns[nn.Conv2d].qat_module is patterns[QATConv2d].qat_module is QATConv2d
    assert patterns[nn.Linear].reference_quantized_module is patterns[QATLinear].reference_quantized_module
    reference = patterns[nn.Conv2d].reference_quantized_module
    description = {"qscheme": torch.per_tensor_affine, "dtype": torch.qint8, "scale": 1.0, "zero_point": 0}
    assert type(reference.from_float(nn.Conv2d(3, 4, 3), description)) is nnqr.Conv2d
    assert type(reference.from_float(nn.Conv2d(3, 4, 3, padding_mode="reflect"), description)) is reference


def test_nothing_else_is_a_quantized_layer() -> None:
    layers = {config.pattern for config in qsam2_backend_config().configs if config.root_module is not None}
    assert layers == {nn.Linear, QATLinear, nn.Conv2d, QATConv2d}


def test_the_float_layer_of_a_conversion_has_its_weight_on_the_grid() -> None:
    for layer, made, x in (
        (nn.Linear(8, 4), QATLinear, torch.randn(5, 8)),
        (nn.Conv2d(4, 6, 3, groups=2), QATConv2d, torch.randn(2, 4, 5, 5)),
    ):
        layer.qconfig = lsc_qconfig(2, None)  # type: ignore[assignment]
        original = layer.weight.detach().clone()
        qat = made.from_float(layer).eval()
        with torch.no_grad():
            expected = qat(x)
            converted = qat.to_float()
            assert type(converted) is type(layer)
            torch.testing.assert_close(converted(x), expected)
            assert all(len(row.unique()) <= 4 for row in converted.weight)
        assert torch.equal(layer.weight, original), "the float model's own weight stays as it is"
