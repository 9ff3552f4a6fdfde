from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import (
    FakeQuantize,
    FakeQuantizeBase,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    default_weight_fake_quant,
)

from qsam2_ao.errors import QConfigError, UnsupportedLayerError
from qsam2_ao.fake_quant import (
    code_range,
    fake_quantize_part,
    fake_quantizers,
    input_quantizer,
    layer_nodes,
    quantized_layers,
    without_input_quantizers,
)
from qsam2_ao.graph import Part, trace_part
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.qconfig import lsc_qconfig

WIDE = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=65535, dtype=torch.qint32)
ENCODER = Part("image_encoder", "image_encoder")


@pytest.fixture(scope="module")
def prepared() -> fx.GraphModule:
    graph = trace_part(build_embedded().image_encoder, ENCODER.path)
    return fake_quantize_part(graph, ENCODER, QConfigMapping().set_global(lsc_qconfig(4, 8)))


def test_every_layer_is_swapped_and_reads_a_quantizer(prepared: fx.GraphModule) -> None:
    float_layers = [
        name
        for name, module in build_embedded().image_encoder.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    assert sorted(name for name, _ in quantized_layers(prepared)) == sorted(float_layers)
    assert all(input_quantizer(prepared, name) is not None for name in float_layers)


def test_only_quantized_layers_read_quantizers(prepared: fx.GraphModule) -> None:
    """Residuals, attention and normalization must stay float."""
    layers = dict(quantized_layers(prepared))
    nodes = layer_nodes(prepared)
    inputs = [name for name, _ in prepared.named_children() if name.startswith("input_quantizer_")]
    assert inputs
    for name in inputs:
        assert {user.target for user in nodes[name].users} <= layers.keys()


def test_layers_that_read_the_same_tensor_share_a_quantizer(prepared: fx.GraphModule) -> None:
    # Block 5 is global and changes the width: its shortcut projection and its qkv read norm1.
    one = input_quantizer(prepared, "trunk.blocks.6.proj")
    other = input_quantizer(prepared, "trunk.blocks.6.attn.qkv")
    windows = input_quantizer(prepared, "trunk.blocks.1.proj"), input_quantizer(prepared, "trunk.blocks.1.attn.qkv")
    assert None not in (one, other, *windows)
    sources = [layer_nodes(prepared)[q[0]].args[0] for q in (one, other) if q]
    assert (one == other) == (sources[0] is sources[1])
    assert windows[0] != windows[1]  # one before and one after the window partition


def test_layers_that_ask_for_different_bits_do_not_share() -> None:
    part = Part("obj_ptr_proj", "part")

    graph = fx.symbolic_trace(_Fork())
    mapping = QConfigMapping().set_module_name("part.a", lsc_qconfig(4, 8)).set_module_name("part.b", lsc_qconfig(4, 4))
    prepared = fake_quantize_part(graph, part, mapping)
    a, b = input_quantizer(prepared, "a"), input_quantizer(prepared, "b")
    assert a is not None
    assert b is not None
    assert (a[1].bits, b[1].bits) == (8, 4)


class _Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x) + self.b(x))


def test_layers_without_a_qconfig_stay_float() -> None:
    mapping = QConfigMapping().set_global(lsc_qconfig(4, None)).set_module_name("part.c", None)
    prepared = fake_quantize_part(fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), mapping)
    assert [name for name, _ in quantized_layers(prepared)] == ["a", "b"]
    assert type(prepared.c) is nn.Linear
    assert input_quantizer(prepared, "a") is None  # weight-only


def test_a_layer_with_several_inputs_is_refused() -> None:
    class Twice(_Fork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    with pytest.raises(UnsupportedLayerError, match=r"part\.a is called 2 times"):
        fake_quantize_part(fx.symbolic_trace(Twice()), Part("obj_ptr_proj", "part"), mapping)


def test_nothing_to_quantize_returns_the_graph() -> None:
    graph = fx.symbolic_trace(_Fork())
    assert fake_quantize_part(graph, Part("obj_ptr_proj", "part"), QConfigMapping()) is graph


@pytest.mark.parametrize(
    ("qconfig", "message"),
    [
        (QConfig(activation=PlaceholderObserver, weight=MinMaxObserver), "MinMaxObserver for the weight"),
        (QConfig(activation=MinMaxObserver, weight=default_weight_fake_quant), "MinMaxObserver for the input"),
        (QConfig(activation=PlaceholderObserver, weight=WIDE), "16-bit codes"),
        (QConfig(activation=WIDE, weight=default_weight_fake_quant), "16-bit codes"),
    ],
)
def test_a_qconfig_that_torch_ao_would_ignore_is_an_error(qconfig: QConfig, message: str) -> None:
    with pytest.raises(QConfigError, match=rf"part\.a: .*{message}"):
        fake_quantize_part(
            fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), QConfigMapping().set_global(qconfig)
        )


def test_switched_off_it_computes_what_the_float_graph_does(prepared: fx.GraphModule) -> None:
    model = build_embedded()
    graph = trace_part(model.image_encoder, ENCODER.path)
    ours = fake_quantize_part(graph, ENCODER, QConfigMapping().set_global(lsc_qconfig(4, 8)))
    for _, quantizer in fake_quantizers(ours):
        quantizer.disable_fake_quant()
        quantizer.disable_observer()
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(ours(x)["vision_features"], model.image_encoder(x)["vision_features"])


def test_the_copy_without_input_quantizers_shares_the_layers(prepared: fx.GraphModule) -> None:
    graph = without_input_quantizers(prepared)
    assert not [name for name, m in graph.named_children() if isinstance(m, FakeQuantizeBase)]
    assert dict(quantized_layers(graph)).keys() == dict(quantized_layers(prepared)).keys()
    name, layer = next(quantized_layers(graph))
    assert prepared.get_submodule(name) is layer
    assert any(name.startswith("input_quantizer") for name, _ in prepared.named_children())


def test_code_range_is_that_of_the_quantizer() -> None:
    assert code_range(lsc_qconfig(3, None).weight(), "x") == (0, 7, 3)
    observer = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=127, dtype=torch.quint8)
    assert code_range(observer, "x") == (0, 127, 7)
    with pytest.raises(QConfigError, match=r"x: 16-bit codes \(0..65535\) do not fit"):
        code_range(WIDE(), "x")
