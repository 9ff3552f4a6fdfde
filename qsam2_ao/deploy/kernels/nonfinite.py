"""NaN and infinity in the inputs of a part on int8: codes cannot hold them, so they are carried past the layers.

A sample with such an input comes out as NaN, as it does where the layers compute in float. An input that quantizers
alone read may be infinite: they clip it to their range there too.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.leaves import mask_probabilities, only_level
from .casts import caller_dtype, to_bfloat16
from .codes import QuantizeCodes
from .positions import SinePosition

_ELEMENTWISE = {only_level, to_bfloat16, mask_probabilities, operator.add, operator.mul}
_LAYOUTS = {"transpose", "permute", "flatten", "contiguous", "to"}


def carry_nonfinite(part: fx.GraphModule, batch_dim: int) -> None:
    """Let samples of a lowered part come out as NaN where codes would hide what is in their inputs, in place.

    Args:
        part: A lowered part, its dtypes settled; one without codes is left as it is.
        batch_dim: Dimension of its inputs and outputs that counts samples.
    """
    modules = dict(part.named_modules())
    if not any(isinstance(m, QuantizeCodes) or getattr(m, "grid", None) is not None for m in modules.values()):
        return
    inputs = [node for node in part.graph.nodes if node.op == "placeholder"]
    clipped = tuple(node for node in inputs if _only_quantized(node, modules))
    others = tuple(node for node in inputs if node not in clipped)
    cast = part.graph.output_node().args[0]
    assert isinstance(cast, fx.Node)
    with part.graph.inserting_before(cast):
        lost = part.graph.call_function(lost_samples, (clipped, others, batch_dim))
        marked: dict[fx.Node, fx.Node] = {}

        def mark(node: fx.Node) -> fx.Node:
            if isinstance(modules.get(str(node.target)), SinePosition):
                return node  # it knows of shapes alone
            if node not in marked:
                marked[node] = part.graph.call_function(mark_lost, (node, lost, batch_dim))
            return marked[node]

        cast.update_arg(0, fx.node.map_arg(cast.args[0], mark))


def _only_quantized(node: fx.Node, modules: dict[str, Any]) -> bool:
    """Whether all that becomes of a value is codes."""
    for user in node.users:
        if isinstance(modules.get(str(user.target)), QuantizeCodes) or user.target is caller_dtype:
            continue
        if user.target not in _ELEMENTWISE | _LAYOUTS or not _only_quantized(user, modules):
            return False
    return True


def lost_samples(clipped: tuple[Any, ...], others: tuple[Any, ...], batch_dim: int) -> Tensor | None:
    """Which samples have NaN in one of their inputs, or infinity in one of the others.

    Args:
        clipped: Inputs that may be infinite: floating tensors, lists of one, or anything else, which is not looked at.
        others: Further inputs.
        batch_dim: Dimension that counts samples.

    Returns:
        bool ``[samples]`` or ``[1]``; None where there is nothing to look at, and on CPUs where no sample is lost.
    """
    lost: Tensor | None = None
    for value, infinite in [*((v, True) for v in clipped), *((v, False) for v in others)]:
        x = value[0] if isinstance(value, list) and len(value) == 1 else value
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.numel() == 0:
            continue
        # A sum that is finite has no term that is not. Elsewhere than here a branch would cost more than it saves.
        here = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if here and math.isfinite(x.detach().sum()):
            continue
        dims = [dim for dim in range(x.dim()) if dim != batch_dim]
        # The largest of values of which one is NaN is NaN.
        bad = x.amax(dims).isnan() if infinite else ~(x.amax(dims).isfinite() & x.amin(dims).isfinite())
        if not here or bool(bad.any()):
            lost = bad if lost is None else lost | bad
    return lost


def mark_lost(x: Tensor, lost: Tensor | None, batch_dim: int) -> Tensor:
    """``x`` with NaN in the samples that are lost."""
    if lost is None:
        return x
    return x.masked_fill(lost.view([-1 if dim == batch_dim else 1 for dim in range(x.dim())]), math.nan)
