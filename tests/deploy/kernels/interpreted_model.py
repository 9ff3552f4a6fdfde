"""Lower a model as for a GPU and run it on the CPU, its kernels in Triton's interpreter.

A program of its own, as the operators of a process are the CPU's kernels or these: ``python interpreted_model.py FILE``
prints ``{part: relative error}`` against the same file in float32.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor

import qsam2_ao.deploy.kernels.linear as linear_module
import qsam2_ao.deploy.kernels.passes as passes
import qsam2_ao.deploy.kernels.values as values_module
from qsam2_ao import load_qsam2, use_int8_scores
from qsam2_ao.deploy.kernels.attention import Attention, WindowAttention
from qsam2_ao.deploy.kernels.linear import Int8Linear
from qsam2_ao.native import cuda, ops  # noqa: F401 - declares the operators

GPU = torch.device("cuda")


def pretend() -> torch.library.Library:
    """Let the CPU be taken for a GPU where models are lowered."""
    library = torch.library.Library("qsam2", "IMPL", "CPU")
    for name, function in cuda.kernels().items():
        library.impl(name, function)
    for module in (linear_module, values_module):
        module.code_offset = lambda device: 128  # type: ignore[attr-defined]
    linear_module.load_kernels = lambda device: None  # type: ignore[attr-defined]
    linear_module.why_no_kernels = lambda device: None  # type: ignore[attr-defined]
    had = passes._Lowering.__init__

    def on_a_gpu(self: Any, part: Any) -> None:
        had(self, part)
        self.device = GPU

    passes._Lowering.__init__ = on_a_gpu  # type: ignore[method-assign]
    return library


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


def main(path: str) -> dict[str, float]:
    """Relative errors of the image encoder and of memory attention, packed, with weights as int8, and with scores."""
    packed = load_qsam2(path, target="packed")
    lowered = load_qsam2(path, target="packed")
    encoder, _ = passes.lower_part(lowered.image_encoder)
    attention, _ = passes.lower_part(lowered.memory_attention, 1)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, 96, 96, generator=generator)
    shapes = {"curr": (36, 64), "curr_pos": (36, 64), "memory": (80, 32), "memory_pos": (80, 32)}
    tokens = {name: torch.randn(n, 1, width, generator=generator) for name, (n, width) in shapes.items()}
    found = {}
    with torch.inference_mode():
        expected = packed.image_encoder(image)["backbone_fpn"][-1]
        attended = packed.memory_attention(**tokens, num_obj_ptr_tokens=8)
        for form in ("packed", "int8"):
            found[f"image encoder, {form}"] = error(encoder(image)["backbone_fpn"][-1], expected)
            found[f"memory attention, {form}"] = error(attention(**tokens, num_obj_ptr_tokens=8), attended)
            layers = [m for part in (encoder, attention) for m in part.modules() if isinstance(m, Int8Linear)]
            assert layers
            for layer in layers:
                layer.keep_eight_bits()
        lowered.memory_attention, lowered.image_encoder = attention, encoder
        use_int8_scores(lowered, image_encoder=True)
        found["image encoder, int8 scores"] = error(encoder(image)["backbone_fpn"][-1], expected)
        found["memory attention, int8 scores"] = error(attention(**tokens, num_obj_ptr_tokens=8), attended)
    names = [type(module).__name__ for module in attention.modules()]
    assert "ValueProjection" in names, "values are projected after"
    coded = {
        path: module.grid is not None
        for part in (encoder, attention)
        for path, module in part.named_modules()
        if isinstance(module, Attention | WindowAttention)
    }
    assert all(gives_codes != ("cross_attn" in path) for path, gives_codes in coded.items()), coded
    return found


if __name__ == "__main__":
    library = pretend()
    print(json.dumps(main(sys.argv[1])))
