from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from sam2.modeling.backbones.hieradet import Hiera
from torch import fx, nn

from qsam2_ao.errors import UnsupportedLayerError
from qsam2_ao.graph import PartGraph, trace_part
from qsam2_ao.models.embedded import build_embedded


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return build_embedded().image_encoder.eval()


def again(graph: PartGraph) -> PartGraph:
    return PartGraph(graph, copy.deepcopy(graph.graph))


def pickled(graph: PartGraph) -> PartGraph:
    return pickle.loads(pickle.dumps(graph))


@pytest.mark.parametrize("remake", [lambda graph: graph, again, copy.deepcopy, pickled])
def test_modules_keep_class_attributes_methods_and_order(
    encoder: nn.Module, remake: Callable[[PartGraph], PartGraph]
) -> None:
    graph = remake(copy.deepcopy(remake(trace_part(encoder, "image_encoder"))))
    assert isinstance(graph, PartGraph)
    assert type(graph).__name__ == "ImageEncoder"
    assert graph.scalp == encoder.scalp
    assert type(graph.trunk) is Hiera
    assert graph.trunk.get_num_layers() == encoder.trunk.get_num_layers() == len(graph.trunk.blocks)
    assert graph.trunk.get_layer_id("trunk.blocks.3.attn.qkv.weight") == 4
    assert graph.trunk.channel_list == encoder.trunk.channel_list
    assert [block.dim_out for block in graph.trunk.blocks] == [block.dim_out for block in encoder.trunk.blocks]
    assert (graph.neck.d_model, graph.neck.backbone_channel_list) == (64, encoder.neck.backbone_channel_list)
    assert [name for name, _ in graph.named_parameters()] == [name for name, _ in encoder.named_parameters()]
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(graph(x)["vision_features"], encoder(x)["vision_features"])


def test_other_threads_go_on_while_one_unpickles(encoder: nn.Module) -> None:
    stored, call = pickle.dumps(trace_part(encoder, "image_encoder")), nn.Module.__call__
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad(), ThreadPoolExecutor(3) as pool:
        expected = encoder(x)["vision_features"]
        graphs = [pool.submit(pickle.loads, stored) for _ in range(3)]
        while not all(graph.done() for graph in graphs):
            assert nn.Module.__call__ is call
            assert torch.equal(encoder(x)["vision_features"], expected)
        assert all(torch.equal(graph.result()(x)["vision_features"], expected) for graph in graphs)


def test_what_the_graph_does_not_read_is_kept() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.unused, self.second = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.offset = nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    module = nn.Sequential(Unused())
    tracer = fx.Tracer()
    tracer.is_leaf_module = lambda m, name: isinstance(m, nn.Linear)  # type: ignore[method-assign]
    graph = PartGraph(module, tracer.trace(module))
    assert list(graph.state_dict()) == list(module.state_dict())


def test_a_module_inside_cannot_be_called_by_itself(encoder: nn.Module) -> None:
    graph = copy.deepcopy(trace_part(encoder, "image_encoder"))
    with pytest.raises(UnsupportedLayerError, match=r"trunk\.blocks\.0\.attn \(MultiScaleAttention\) cannot be called"):
        graph.trunk.blocks[0].attn(torch.zeros(1, 2, 2, 32))


def test_the_original_keeps_its_own_modules(encoder: nn.Module) -> None:
    before = {name: id(module) for name, module in encoder.named_modules()}
    trace_part(encoder, "image_encoder").trunk.to(torch.float32)
    assert {name: id(module) for name, module in encoder.named_modules()} == before
    encoder.trunk(torch.zeros(1, 3, 96, 96))  # still to be called


def test_unused_layers_are_deleted_and_what_holds_them_stays(encoder: nn.Module) -> None:
    graph = trace_part(copy.deepcopy(encoder), "image_encoder")
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.update_arg(0, next(node for node in graph.graph.nodes if node.target == "trunk.blocks.0.norm1"))
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    assert [name for name, module in graph.named_modules() if isinstance(module, nn.LayerNorm | nn.Linear)] == [
        "trunk.blocks.0.norm1"
    ]
    assert graph.trunk.get_num_layers() == encoder.trunk.get_num_layers()


def test_a_compiled_graph_is_pickled_as_it_was_before(encoder: nn.Module) -> None:
    graph = trace_part(encoder, "image_encoder")
    graph.compile(backend="eager")
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(pickled(graph)(x)["vision_features"], encoder(x)["vision_features"])


@pytest.mark.parametrize("remake", [lambda graph: graph, again, copy.deepcopy, pickled])
def test_a_graph_that_casts_by_itself_keeps_its_dtypes(
    encoder: nn.Module, remake: Callable[[PartGraph], PartGraph]
) -> None:
    graph = trace_part(encoder, "image_encoder")
    graph.keeps_dtypes = True
    kept = remake(graph).half().to("meta")
    assert {(value.dtype, value.device.type) for value in kept.state_dict().values()} == {(torch.float32, "meta")}
