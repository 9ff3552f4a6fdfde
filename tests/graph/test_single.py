from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import QConfigMapping

from qsam2_ao import lsc_qconfig
from qsam2_ao.graph import SINGLE_LAYER, Part, as_part, graph_of, trace_part
from qsam2_ao.recipe.insert import fake_quantize_part
from qsam2_ao.recipe.prepared import input_quantizer, without_input_quantizers
from qsam2_ao.recipe.resolve import part_recipe

PART = Part("mask_decoder", "sam_mask_decoder.conv_s0")


def quantized(bits: int | None = 8) -> tuple[nn.Module, fx.GraphModule]:
    """A lone layer with fake-quantizers, and the graph that it came from."""
    torch.manual_seed(0)
    graph = trace_part(nn.Conv2d(3, 2, 1), PART.path)
    mapping = QConfigMapping().set_global(lsc_qconfig(4, bits))
    graph = fake_quantize_part(graph, PART, part_recipe(mapping, PART, graph))
    part = as_part(graph)
    part.train()(torch.randn(1, 3, 4, 4))  # starts the ranges
    return part.eval(), graph.eval()


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_a_float_layer_stays_itself(layer: nn.Module) -> None:
    assert as_part(graph_of(layer)) is layer
    assert graph_of(layer).get_submodule(SINGLE_LAYER) is layer


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, None])
def test_a_layer_keeps_its_names_and_quantizes_its_input_once(bits: int | None) -> None:
    part, _ = quantized(bits)
    names = ["weight", "bias", "weight_fake_quant.log_alpha", *["input_quantizer_0.log_alpha"] * (bits is not None)]
    assert [name for name, _ in part.named_parameters()] == names
    x = torch.randn(2, 3, 4, 4)
    read = part.get_submodule("input_quantizer_0")(x) if bits else x
    expected = nn.functional.conv2d(read, part.weight_fake_quant(part.weight), part.bias)
    for each in (part, copy.deepcopy(part), pickle.loads(pickle.dumps(part)), graph_of(part)):
        assert torch.equal(each(x), expected)
    assert as_part(graph_of(part)).state_dict().keys() == part.state_dict().keys()


@torch.no_grad()
def test_the_graph_of_a_layer_shares_it_and_can_be_changed() -> None:
    part, original = quantized()
    graph = graph_of(part)
    assert graph.layer.weight is part.weight
    assert [node.target for node in graph.graph.nodes] == [node.target for node in original.graph.nodes]
    found = input_quantizer(graph, SINGLE_LAYER)
    assert found == ("input_quantizer_0", part.get_submodule("input_quantizer_0"))
    bare = as_part(without_input_quantizers(graph))
    x = torch.randn(1, 3, 4, 4)
    assert torch.equal(bare(x), nn.functional.conv2d(x, part.weight_fake_quant(part.weight), part.bias))
    assert not torch.equal(part(x), bare(x))  # the layer itself is left as it was


def test_a_hook_of_the_user_sees_what_the_layer_reads() -> None:
    part, _ = quantized()
    seen: list[torch.Tensor] = []
    part.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(1, 3, 4, 4)
    part(x)
    graph_of(part)(x)
    with torch.no_grad():
        expected = part.get_submodule("input_quantizer_0")(x)
    assert len(seen) == 2
    assert all(torch.equal(value, expected) for value in seen)


def test_another_graph_stays_a_graph() -> None:
    graph = trace_part(nn.Linear(3, 2), "part")
    with graph.graph.inserting_before(next(iter(graph.graph.nodes)).next):
        doubled = graph.graph.call_function(torch.add, (next(iter(graph.graph.nodes)), 1))
    doubled.next.update_arg(0, doubled)
    graph.recompile()
    assert as_part(graph) is graph
