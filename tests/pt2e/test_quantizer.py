from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from networks import images, network
from torch import nn
from torch.ao.quantization import QConfig, QConfigMapping, default_fused_per_channel_wt_fake_quant
from torchao.quantization.pt2e import FusedMovingAvgObsFakeQuantize, move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

from qsam2_ao import LSCFakeQuantize, calibrate_network, load_embedded, lsc_qconfig
from qsam2_ao.errors import QConfigError
from qsam2_ao.pt2e import QSAM2Quantizer, eval_exported, train_exported


def exported(module, *inputs):
    return torch.export.export(module.train(), inputs, strict=False).module()


def first(output):
    return (
        output[0]
        if isinstance(output, (list, tuple))
        else output["vision_features"]
        if isinstance(output, dict)
        else output
    )


def train(prepared, inputs, target=None, steps=2, rate=1e-3):
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(prepared.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        output = first(prepared(*inputs))
        (output - (0 if target is None else target)).square().mean().backward()
        optimizer.step()


def bits_of(prepared):
    """Layer -> bits of its weight and input."""
    found: dict[str, tuple] = {}
    for module in prepared.modules():
        if isinstance(module, LSCFakeQuantize):
            weight, activation = found.get(module.name, (None, None))
            found[module.name] = (module.bits, activation) if module.is_weight else (weight, module.bits)
    return found


@pytest.fixture(scope="module")
def sam2():
    return load_embedded()


def inputs_of(sam2, path):
    generator = torch.Generator().manual_seed(0)
    size, dim, memory, grid = sam2.image_size, sam2.hidden_dim, sam2.mem_dim, sam2.image_size // 16
    shapes = {
        "image_encoder.trunk": [(1, 3, size, size)],
        "memory_attention": [(grid**2, 1, dim), (grid**2, 1, memory), (grid**2, 1, dim), (grid**2, 1, memory)],
        "memory_encoder": [(1, dim, grid, grid), (1, 1, size, size)],
        "sam_mask_decoder.transformer": [(1, dim, grid, grid), (1, dim, grid, grid), (1, 7, dim)],
    }
    return [torch.randn(shape, generator=generator) for shape in shapes[path]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "edge"),
    [
        ("image_encoder.trunk", "image_encoder.trunk.patch_embed.proj"),
        ("memory_attention", None),
        ("memory_encoder", "memory_encoder.mask_downsampler.encoder.0"),
        ("sam_mask_decoder.transformer", None),
    ],
)
def test_parts_of_sam2_are_trained_and_converted(sam2, path, edge):
    inputs = inputs_of(sam2, path)
    quantizer = QSAM2Quantizer("w2a8", path=path)
    prepared = prepare_qat_pt2e(exported(sam2.get_submodule(path), *inputs), quantizer)
    expected = {
        name: 8 if name == edge or name.endswith(("image_to_token.q_proj", "image_to_token.k_proj")) else 2
        for name, module in sam2.named_modules()
        if f"{name}.".startswith(f"{path}.") and isinstance(module, (nn.Linear, nn.Conv2d))
    }
    assert set(quantizer.annotated) == set(expected)
    assert quantizer.left_in_float == {}
    weights = {name: bits for name, (bits, _) in bits_of(prepared).items() if bits is not None}
    assert weights == expected
    train(prepared, inputs)
    eval_exported(prepared)
    with torch.no_grad():
        trained = first(prepared(*inputs))
        result = first(convert_pt2e(prepared)(*inputs))
    assert float((result - trained).norm() / trained.norm()) < 5e-3


def assert_converts_as_trained(prepared, x):
    train(prepared, [x])
    eval_exported(prepared)
    with torch.no_grad():
        trained = prepared(x)
        result = convert_pt2e(prepared)(x)
    assert float((result - trained).norm() / trained.norm()) < 0.02


def test_layers_share_the_quantizer_of_one_input(sam2):
    inputs = inputs_of(sam2, "memory_attention")
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    mapping.set_module_name("memory_attention.layers.0.self_attn.q_proj", lsc_qconfig(4, 4))
    prepared = prepare_qat_pt2e(
        exported(sam2.memory_attention, *inputs), QSAM2Quantizer(mapping, path="memory_attention")
    )
    readers = {}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and isinstance(prepared.get_submodule(node.target), LSCFakeQuantize):
            quantizer = prepared.get_submodule(node.target)
            if not quantizer.is_weight and quantizer.name.startswith("memory_attention.layers.0.self_attn"):
                readers.setdefault(quantizer.bits, set()).update(user.args[1].args[0].target for user in node.users)
    # Queries and keys read one tensor (the position is added to both), values another.
    assert sorted(readers) == [4, 8]
    assert readers[4] == {"layers.0.self_attn.q_proj.weight"}
    assert "layers.0.self_attn.k_proj.weight" in readers[8]


def test_rules_choose_by_name_pattern_and_type():
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    mapping.set_module_name("qkv", lsc_qconfig(2, 8)).set_module_name_regex(r"mlp\..*", lsc_qconfig(3, None))
    mapping.set_object_type(nn.Conv2d, lsc_qconfig(8, 8)).set_module_name("head", None)
    quantizer = QSAM2Quantizer(mapping)
    prepared = prepare_qat_pt2e(exported(network("vit_block"), images()), quantizer)
    assert bits_of(prepared) == {
        "embed": (8, 8),
        "qkv": (2, 8),
        "proj": (4, 8),
        "mlp.0": (3, None),
        "mlp.2": (3, None),
    }
    assert quantizer.left_in_float == {"head": "its QConfig is None"}


def test_regions_choose_by_the_path_in_sam2(sam2):
    inputs = inputs_of(sam2, "memory_encoder")
    graph = exported(sam2.memory_encoder, *inputs)
    with pytest.raises(QConfigError, match=r"in no region of the recipe \(image_encoder\)"):
        prepare_qat_pt2e(graph, QSAM2Quantizer({"image_encoder": "w4a8"}, path="memory_encoder"))
    recipe = QSAM2Quantizer({"image_encoder": "w4a8", "memory_encoder": "w2a8"}, path="memory_encoder")
    prepared = prepare_qat_pt2e(exported(sam2.memory_encoder, *inputs), recipe)
    assert bits_of(prepared)["memory_encoder.out_proj"] == (2, 8)


class Others(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.up = nn.Embedding(4, 8), nn.Linear(8, 8), nn.ConvTranspose2d(8, 2, 2, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        x = self.fc(self.fc(self.embed(x)).relu()) @ self.matrix
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.up(x.transpose(1, 2).unflatten(2, (2, 2)))


def test_what_is_not_annotated_is_reported(caplog):
    quantizer = QSAM2Quantizer("w4a8")
    x = torch.randint(0, 4, (3, 4))
    with caplog.at_level(logging.WARNING):
        prepared = prepare_qat_pt2e(exported(Others(), x), quantizer)
    assert quantizer.annotated == ("fc", "fc", "attention.in_proj_weight", "attention.out_proj")
    assert set(quantizer.left_in_float) == {"embed", "matrix", "up"}
    assert "aten.conv_transpose2d.input is not quantized" in caplog.text
    assert_converts_as_trained(prepared, x)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda m: m.set_module_name("mlp.5", lsc_qconfig(4, 8)), r"set_module_name\('mlp.5'\).*its layers are embed"),
        (lambda m: m.set_module_name_regex("fc", None), "set_module_name_regex"),
        (lambda m: m.set_object_type(nn.functional.linear, lsc_qconfig(4, 8)), "set_object_type"),
        (lambda m: m.set_module_name_object_type_order("mlp", nn.Linear, 0, None), "type_order"),
        (lambda m: m.set_module_name("qkv", lsc_qconfig(4, 8, grid="mean")), "qkv: .*choose grid='midrise'"),
        (lambda m: m.set_module_name("qkv", lsc_qconfig(8, 8, grid="midrise")), "qkv: .*'symmetric'"),
        (lambda m: m.set_global(lsc_qconfig(4, 8, granularity="group", group_size=8)), "embed: .*granularity"),
        (lambda m: m.set_global(None), "no linear layer"),
        (
            lambda m: m.set_global(QConfig(nn.Identity, default_fused_per_channel_wt_fake_quant)),
            "embed: .*takes LSCFakeQuantize",
        ),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(rule, message):
    mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
    rule(mapping)
    with pytest.raises(QConfigError, match=message):
        prepare_qat_pt2e(exported(network("vit_block"), images()), QSAM2Quantizer(mapping))


@pytest.mark.slow
def test_evaluation_moves_no_range():
    x = images()
    prepared = prepare_qat_pt2e(exported(network("plain_conv_net"), x), QSAM2Quantizer("w4a8"))
    train(prepared, [x])
    eval_exported(prepared)
    with torch.no_grad():
        before = prepared(x)
    prepared(images(seed=7) * 5)
    with torch.no_grad():
        assert torch.equal(prepared(x), before)
    train_exported(prepared)(images(seed=7) * 5)
    with torch.no_grad():
        assert not torch.equal(eval_exported(prepared)(x), before)


def rivals_quantizer(bits):
    """torchao's quantizer for x86 with weights of so many bits; its own fake-quantizers and observers."""
    config = get_default_x86_inductor_quantization_config(is_qat=True)
    weight = dataclasses.replace(config.weight, quant_min=-(2 ** (bits - 1)), quant_max=2 ** (bits - 1) - 1)
    return X86InductorQuantizer().set_global(dataclasses.replace(config, weight=weight))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("net", ["mlp", "plain_conv_net", "vit_block"])
def test_better_than_torchaos_quantizer_at_few_bits(net, bits):
    """Both distil the same float network, from the same weights, batches, steps and learning rate."""
    teacher = network(net).eval()
    x, unseen = images(64), images(64, seed=2)
    with torch.no_grad():
        target, wanted = teacher(x), teacher(unseen)

    def error(quantizer):
        prepared = prepare_qat_pt2e(exported(network(net), x), quantizer)
        train(prepared, [x], target, steps=30, rate=2e-3)
        prepared.apply(lambda module: module.disable_observer() if hasattr(module, "disable_observer") else None)
        converted = move_exported_model_to_eval(convert_pt2e(move_exported_model_to_eval(prepared)))
        with torch.no_grad():
            return float((converted(unseen) - wanted).norm() / wanted.norm())

    ours, theirs = error(QSAM2Quantizer(lsc_qconfig(bits, 8))), error(rivals_quantizer(bits))
    assert ours < theirs


@pytest.mark.slow
def test_torchaos_quantizer_takes_our_fake_quantizers():
    x = images()
    config = get_default_x86_inductor_quantization_config(is_qat=True)
    inputs = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=LSCFakeQuantize.with_args(bits=8))
    weight = dataclasses.replace(
        config.weight,
        quant_min=-8,
        quant_max=7,
        observer_or_fake_quant_ctr=LSCFakeQuantize.with_args(bits=4, is_weight=True),
    )
    config = dataclasses.replace(config, input_activation=inputs, output_activation=inputs, weight=weight)
    prepared = prepare_qat_pt2e(exported(network("plain_conv_net"), x), X86InductorQuantizer().set_global(config))
    assert not any(isinstance(module, FusedMovingAvgObsFakeQuantize) for module in prepared.modules())
    assert_converts_as_trained(prepared, x)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.after = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            x = self.inside(x)
        return self.after(x)


def test_layers_inside_blocks_are_reported():
    quantizer = QSAM2Quantizer("w4a8")
    prepare_qat_pt2e(exported(Mixed(), torch.randn(2, 8)), quantizer)
    assert quantizer.annotated == ("after",)
    assert list(quantizer.left_in_float) == ["inside"]
    assert "inside wrap_with_autocast; export the network without that block" in quantizer.left_in_float["inside"]


def test_float64_is_refused_before_training():
    graph = exported(nn.Linear(8, 4).double(), torch.randn(2, 8, dtype=torch.float64))
    with pytest.raises(QConfigError, match="is float64, which convert_pt2e refuses"):
        prepare_qat_pt2e(graph, QSAM2Quantizer("w4a8"))


def test_weight_quantizers_of_a_part_are_those_that_calibration_takes(sam2):
    x = torch.randn(1, sam2.hidden_dim, 6, 6)
    graph = exported(sam2.memory_encoder.fuser, x)
    quantizers = QSAM2Quantizer("w4a8", path="memory_encoder.fuser").weight_quantizers(graph)
    _, report = calibrate_network(graph, [x], quantizers={name: quantizers[name] for name in ("layers.0.pwconv1",)})
    assert [layer.layer for layer in report.layers] == ["layers.0.pwconv1"]
