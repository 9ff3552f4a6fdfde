"""Threads that run one model on inputs of different sizes get what each gets alone, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sam2_runs import images
from threads import at_once
from torch import Tensor

from qsam2_ao import load_embedded, load_qsam2, lower_float, prepare_qsam2
from qsam2_ao.native import why_no_kernels

MODELS: dict[str, Callable[[Path], Any]] = {
    "prepared": lambda file: prepare_qsam2(load_embedded(), "w4a8", vrc=None).eval(),
    "packed": lambda file: load_qsam2(file),
    "int8": lambda file: load_qsam2(file, target="int8"),
    "float, lowered": lambda file: lower_float(load_embedded()),
}


@torch.inference_mode()
def run(model: Any, side: int) -> list[Tensor]:
    """Image features, then memory attention over the tokens of the same image."""
    out = model.image_encoder(images(1, 16 * side))
    tokens, position = (x.flatten(2).permute(2, 0, 1) for x in (out["backbone_fpn"][-1], out["vision_pos_enc"][-1]))
    memory = torch.cat([tokens[..., :32], tokens[..., 32:]])
    attended = model.memory_attention(tokens, memory, position, torch.zeros_like(memory))
    return [*out["backbone_fpn"], *out["vision_pos_enc"], attended]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_sizes_do_not_meet(name: str, packed_file: Path) -> None:
    if name not in ("prepared", "packed") and (reason := why_no_kernels()) is not None:
        pytest.skip(reason)
    model = MODELS[name](packed_file)
    if name == "prepared":
        run(model.train(), 6)  # ranges start from the first batch
        model.eval()
    sides = (4, 6, 8)
    alone = [run(model, side) for side in sides]

    def often(side: int) -> list[list[Tensor]]:
        return [run(model, side) for _ in range(6)]

    for found, expected in zip(at_once(*(partial(often, side) for side in sides)), alone, strict=True):
        for outputs in found:
            assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))
