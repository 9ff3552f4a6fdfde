from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from sam2.modeling.backbones import hieradet
from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
from sam2.modeling.sam.transformer import Attention, RoPEAttention
from sam2.modeling.sam2_utils import MLP
from threads import at_once, during
from torch import fx, nn

from qsam2_ao.errors import GraphTraceError
from qsam2_ao.graph import trace_part
from qsam2_ao.models.embedded import build_embedded

before_any_trace = nn.Module.__call__


def test_parameters_keep_their_names_and_are_shared() -> None:
    encoder = build_embedded().image_encoder
    graph = trace_part(encoder, "image_encoder")
    assert isinstance(graph, fx.GraphModule)
    ours, theirs = dict(graph.named_parameters()), dict(encoder.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)


def test_the_module_is_left_as_it_was() -> None:
    attention = build_embedded().memory_attention
    before = [name for name, _ in attention.named_modules()]
    trace_part(attention, "memory_attention")
    assert [name for name, _ in attention.named_modules()] == before


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.Conv2d(3, 2, 1)])
def test_a_lone_layer_becomes_a_graph_around_it(layer: nn.Module) -> None:
    graph = trace_part(layer, "part")
    x = torch.randn(4, 3) if isinstance(layer, nn.Linear) else torch.randn(1, 3, 4, 4)
    assert torch.equal(graph(x), layer(x))
    assert graph.layer is layer


def test_a_subclass_of_a_known_class_is_refused_by_name() -> None:
    class MyMLP(MLP):
        pass

    with pytest.raises(GraphTraceError, match=r"head is a .*MyMLP, which cannot be traced.*[Ll]eave its region"):
        trace_part(MyMLP(2, 2, 2, 2), "head")


def test_a_graph_is_refused() -> None:
    graph = trace_part(MLP(2, 2, 2, 2), "head")
    with pytest.raises(GraphTraceError, match=r"head is a .*graph already"):
        trace_part(graph, "head")


def test_an_untraceable_module_is_named_with_the_reason() -> None:
    attention = Attention(4, 1)
    attention.q_proj = nn.Sequential(_data_dependent())
    with pytest.raises(GraphTraceError, match=r"part \(Attention\) cannot be traced: TraceError: .*control flow"):
        trace_part(attention, "part")


def _data_dependent() -> nn.Module:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x

    module = nn.Sequential()
    module.forward = forward  # type: ignore[method-assign]
    return module


def test_other_threads_go_on_while_one_traces() -> None:
    serving, traced = build_embedded().image_encoder.eval(), [build_embedded().image_encoder for _ in range(3)]
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = serving(image)["vision_features"]
    with ThreadPoolExecutor(4) as pool:
        graphs = [pool.submit(trace_part, encoder, "image_encoder") for encoder in traced]
        runs = 0
        while runs < 3 or not all(graph.done() for graph in graphs):
            with torch.no_grad():
                assert torch.equal(serving(image)["vision_features"], before)
            runs += 1
    assert all(isinstance(graph.result(), fx.GraphModule) for graph in graphs)
    assert nn.Module.__call__ is before_any_trace


def test_traces_of_a_users_own_and_ours_do_not_meet() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x) + 1

    encoders = [build_embedded().image_encoder for _ in range(3)]

    def ours() -> list[str]:
        return [node.name for node in trace_part(encoders.pop(), "image_encoder").graph.nodes]

    def theirs() -> list[str]:
        return [node.name for _ in range(20) for node in fx.symbolic_trace(Mine()).graph.nodes]

    alone = [traced := ours(), theirs(), traced]
    before = nn.Module.__call__, nn.Module.__getattr__, dict(vars(hieradet))
    assert at_once(ours, theirs, ours) == alone
    assert (nn.Module.__call__, nn.Module.__getattr__, dict(vars(hieradet))) == before


def test_a_module_runs_in_another_thread_while_it_is_traced() -> None:
    attention = build_embedded().memory_attention.eval()
    x = [torch.randn(36, 1, 64), torch.randn(36, 1, 32), torch.randn(36, 1, 64), torch.randn(36, 1, 32)]
    with torch.no_grad():
        expected = attention(*x)

    def run() -> None:
        with torch.no_grad():
            assert torch.equal(attention(*x), expected)

    graph = during(partial(trace_part, attention, "memory_attention"), run)
    assert torch.equal(graph(*x), expected)
    assert {type(module) for module in attention.modules()} >= {MemoryAttention, MemoryAttentionLayer, RoPEAttention}
