from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import (
    FakeQuantize,
    FakeQuantizeBase,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    NoopObserver,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_quant_observer,
    default_per_channel_weight_fake_quant,
    default_weight_fake_quant,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig,
    get_default_qconfig_mapping,
)
from torch.ao.quantization import qconfig as torch_ao
from torch.ao.quantization import qconfig_mapping as torch_ao_mapping

from qsam2_ao import convert_qsam2, prepare_qsam2
from qsam2_ao.errors import QConfigError, UnsupportedLayerError
from qsam2_ao.graph import Part, trace_part
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.quantizers import LSCFakeQuantize
from qsam2_ao.recipe import QConfigLike, lsc_qconfig
from qsam2_ao.recipe.insert import fake_quantize_part
from qsam2_ao.recipe.prepared import (
    code_range,
    fake_quantizers,
    input_quantizer,
    layer_nodes,
    quantized_layers,
    without_input_quantizers,
)
from qsam2_ao.recipe.resolve import part_recipe

WIDE = FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=65535, dtype=torch.qint32)
HALF = PlaceholderObserver.with_args(dtype=torch.float16)
INPUT_CHANNELS = default_per_channel_weight_fake_quant.with_args(ch_axis=1)
LSC, LSC_WEIGHT = LSCFakeQuantize.with_args(bits=8), LSCFakeQuantize.with_args(bits=4, is_weight=True)
ENCODER = Part("image_encoder", "image_encoder")


def quantize(graph: fx.GraphModule, part: Part, mapping: QConfigMapping) -> fx.GraphModule:
    return fake_quantize_part(graph, part, part_recipe(mapping, part, graph))


@pytest.fixture(scope="module")
def prepared() -> fx.GraphModule:
    graph = trace_part(build_embedded().image_encoder, ENCODER.path)
    return quantize(graph, ENCODER, QConfigMapping().set_global(lsc_qconfig(4, 8)))


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
    prepared = quantize(graph, part, mapping)
    a, b = input_quantizer(prepared, "a"), input_quantizer(prepared, "b")
    assert a is not None
    assert b is not None
    assert (a[1].bits, b[1].bits) == (8, 4)


def test_layers_that_ask_for_different_observers_do_not_share() -> None:
    affine = FakeQuantize.with_args(
        observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    others = [
        affine.with_args(observer=MinMaxObserver),
        affine.with_args(qscheme=torch.per_tensor_symmetric),
        affine.with_args(averaging_constant=0.5),
    ]
    weight = default_per_channel_weight_fake_quant
    for other in others:
        mapping = QConfigMapping().set_module_name("part.a", QConfig(affine, weight))
        mapping.set_module_name("part.b", QConfig(other, weight))
        prepared = quantize(fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), mapping)
        found = [input_quantizer(prepared, name) for name in "ab"]
        assert found[0][0] != found[1][0]  # type: ignore[index]
        wanted = other()
        assert type(found[1][1].activation_post_process) is type(wanted.activation_post_process)  # type: ignore[index]
        assert found[1][1].qscheme == wanted.qscheme  # type: ignore[index]
    mapping = QConfigMapping().set_module_name("part.a", QConfig(affine, weight))
    mapping.set_module_name("part.b", QConfig(affine.with_args(), weight))
    prepared = quantize(fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), mapping)
    assert input_quantizer(prepared, "a") == input_quantizer(prepared, "b")


class _Fork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x) + self.b(x))


def test_layers_without_a_qconfig_stay_float() -> None:
    mapping = QConfigMapping().set_global(lsc_qconfig(4, None)).set_module_name("part.c", None)
    prepared = quantize(fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), mapping)
    assert [name for name, _ in quantized_layers(prepared)] == ["a", "b"]
    assert type(prepared.c) is nn.Linear
    assert input_quantizer(prepared, "a") is None  # weight-only


def test_a_layer_with_several_inputs_is_refused() -> None:
    class Twice(_Fork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(self.a(x))

    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    with pytest.raises(UnsupportedLayerError, match=r"part\.a is called 2 times"):
        quantize(fx.symbolic_trace(Twice()), Part("obj_ptr_proj", "part"), mapping)


def test_nothing_to_quantize_returns_the_graph() -> None:
    graph = fx.symbolic_trace(_Fork())
    assert quantize(graph, Part("obj_ptr_proj", "part"), QConfigMapping()) is graph


@pytest.mark.parametrize(
    ("qconfig", "message"),
    [
        (QConfig(activation=PlaceholderObserver, weight=MinMaxObserver), "MinMaxObserver for the weight"),
        (QConfig(activation=MinMaxObserver, weight=default_weight_fake_quant), "MinMaxObserver for the input"),
        (QConfig(activation=PlaceholderObserver, weight=WIDE), "16-bit codes"),
        (QConfig(activation=WIDE, weight=default_weight_fake_quant), "16-bit codes"),
        (QConfig(activation=PlaceholderObserver, weight=None), r"weight \(None\) makes no fake-quantizer"),
        (QConfig(activation=lambda: 1 / 0, weight=default_weight_fake_quant), "activation .*division by zero"),
        (
            QConfig(activation=HALF, weight=default_weight_fake_quant),
            r"PlaceholderObserver for the input \(torch.float16\)",
        ),
        (
            QConfig(activation=NoopObserver, weight=default_weight_fake_quant),
            r"NoopObserver for the input \(torch.float16\)",
        ),
        (QConfig(activation=default_dynamic_quant_observer, weight=default_weight_fake_quant), "dynamically"),
        (QConfig(activation=default_per_channel_weight_fake_quant, weight=default_weight_fake_quant), "per channel"),
        (QConfig(activation=nn.Identity, weight=INPUT_CHANNELS), "index of dimension 1"),
        (QConfig(activation=LSC, weight=LSC), "quantizer of the weight must be made with is_weight=True"),
        (QConfig(activation=LSC_WEIGHT, weight=LSC_WEIGHT), "quantizer of the input must be made with is_weight=False"),
    ],
)
def test_a_qconfig_that_torch_ao_would_ignore_is_an_error(qconfig: QConfig, message: str) -> None:
    with pytest.raises(QConfigError, match=rf"part\.a: .*{message}"):
        quantize(fx.symbolic_trace(_Fork()), Part("obj_ptr_proj", "part"), QConfigMapping().set_global(qconfig))


BACKENDS = ("x86", "fbgemm", "qnnpack", "onednn")
OBSERVES = "Observer for the weight; training needs a fake-quantizer there: choose lsc_qconfig"
# What torch.ao calls each of its QConfigs -> what the error says, or None where it trains and converts.
OF_TORCH_AO: dict[str, str | None] = {
    "default_qat_qconfig": None,
    "default_qat_qconfig_v2": None,
    "default_weight_only_qconfig": None,
    "default_symmetric_qnnpack_qat_qconfig": None,
    "default_per_channel_symmetric_qnnpack_qat_qconfig": None,
    "default_embedding_qat_qconfig": None,
    "default_embedding_qat_qconfig_4bit": None,
    "default_dynamic_qat_qconfig": "input dynamically.*choose lsc_qconfig.* or default_qat_qconfig",
    "default_activation_only_qconfig": "Identity for the weight; training needs a fake-quantizer there: choose",
    "_default_quint8_placeholder_qconfig": r"weight \(None\) makes no fake-quantizer.*choose lsc_qconfig",
    **dict.fromkeys(
        (
            "default_qconfig",
            "default_debug_qconfig",
            "default_per_channel_qconfig",
            "default_dynamic_qconfig",
            "float16_dynamic_qconfig",
            "float16_static_qconfig",
            "per_channel_dynamic_qconfig",
            "float_qparams_weight_only_qconfig",
            "float_qparams_weight_only_qconfig_4bit",
            "default_quint8_weight_qconfig",
            "default_reuse_input_qconfig",
            "default_symmetric_qnnpack_qconfig",
            "default_per_channel_symmetric_qnnpack_qconfig",
            "_default_fp32_placeholder_qconfig",
        ),
        OBSERVES,
    ),
}
MADE: dict[str, tuple[QConfigLike, str | None]] = {
    **{f"qat {b} {v}": (get_default_qat_qconfig(b, v), None) for b in BACKENDS for v in (0, 1)},
    **{f"qat mapping {b} {v}": (get_default_qat_qconfig_mapping(b, v), None) for b in BACKENDS for v in (0, 1)},
    **{f"ptq {b}": (get_default_qconfig(b), OBSERVES) for b in BACKENDS},
    **{f"ptq mapping {b}": (get_default_qconfig_mapping(b), OBSERVES) for b in BACKENDS},
    "qat mapping qnnpack symmetric": (torch_ao_mapping._get_symmetric_qnnpack_qat_qconfig_mapping(), None),
    "ptq mapping qnnpack symmetric": (torch_ao_mapping._get_symmetric_qnnpack_qconfig_mapping(), OBSERVES),
    "from_dict": (QConfigMapping.from_dict({"": torch_ao.default_weight_only_qconfig}), None),
    "object type": (QConfigMapping().set_object_type(nn.Linear, torch_ao.default_qat_qconfig), None),
    "dynamic in a mapping": (
        QConfigMapping().set_module_name("obj_ptr_proj", torch_ao.default_dynamic_qat_qconfig),
        OF_TORCH_AO["default_dynamic_qat_qconfig"],
    ),
}


def test_the_table_has_all_of_torch_aos_qconfigs() -> None:
    assert OF_TORCH_AO.keys() == {name for name, value in vars(torch_ao).items() if isinstance(value, QConfig)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*reduce_range will be deprecated.*")
@pytest.mark.parametrize("name", [*OF_TORCH_AO, *MADE])
def test_torch_aos_qconfigs_train_and_convert_or_are_refused_by_name(name: str) -> None:
    torch.manual_seed(0)
    qconfig, error = MADE[name] if name in MADE else (getattr(torch_ao, name), OF_TORCH_AO[name])
    model = build_embedded()
    if error is not None:
        with pytest.raises(QConfigError, match=rf"^obj_ptr_proj\.layers\.0: .*{error}"):
            prepare_qsam2(model, {"obj_ptr_proj": qconfig}, vrc=None, progress=False)
        return
    prepared = prepare_qsam2(model, {"obj_ptr_proj": qconfig}, vrc=None, progress=False)
    x = torch.randn(6, model.hidden_dim)
    for path in ("obj_ptr_proj", "obj_ptr_tpos_proj"):  # the second reads something narrower
        part = prepared.get_submodule(path).train()
        y = part(x[:, : model.get_submodule(path).in_features] if path.endswith("tpos_proj") else x)
        y.square().sum().backward()
        assert all(layer.weight.grad.isfinite().all() for _, layer in quantized_layers(part))
    with torch.no_grad():
        wanted = prepared.eval().obj_ptr_proj(x)
        ours, unquantized = convert_qsam2(prepared).obj_ptr_proj(x), model.obj_ptr_proj(x)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    assert not torch.equal(wanted, unquantized)  # it is quantized
    torch.testing.assert_close(wanted, unquantized, rtol=0, atol=0.1 * float(wanted.abs().max()))
    inputs = [child for child, _ in prepared.obj_ptr_proj.named_children() if child.startswith("input_quantizer")]
    weight_only = "weight_only" in name or "embedding" in name or name == "from_dict"
    assert len(inputs) == (0 if weight_only else 3)


def test_switched_off_it_computes_what_the_float_graph_does(prepared: fx.GraphModule) -> None:
    model = build_embedded()
    graph = trace_part(model.image_encoder, ENCODER.path)
    ours = quantize(graph, ENCODER, QConfigMapping().set_global(lsc_qconfig(4, 8)))
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
