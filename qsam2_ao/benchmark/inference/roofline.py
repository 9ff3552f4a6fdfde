"""How much work a part is, and how much of what the machine can do a deployed model does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...native import load_kernels, why_no_kernels
from .parts import DECODER, ENCODER, PARTS
from .workload import InferenceWorkload

_ATTENTION = "bmm"
COUNTED = (ENCODER, "memory attention, 1 frame", "memory attention, 7 frames", DECODER)


def work(workload: InferenceWorkload) -> list[dict[str, Any]]:
    """Operations of each part: in layers with weights, and in attention.

    Returns:
        Records {model, size, part, layer_gflop, attention_gflop, tensor_mb}; a multiplication and an addition are two
        operations; bytes are those that matrix products and convolutions read and write once, at 8 bits for what layers
        read and 16 for the rest.
    """
    model, records = workload.build(), []
    for part in COUNTED:
        run = PARTS[part](model, workload.image())
        layers = _Bytes()
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), layers, FlopCounterMode(display=False) as counter:
            run()
        counts = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
        attention = sum(n for op, n in counts.items() if _ATTENTION in op)
        records.append(
            {
                "model": workload.model,
                "size": workload.size,
                "part": part,
                "layer_gflop": round((sum(counts.values()) - attention) / 1e9, 2),
                "attention_gflop": round(attention / 1e9, 2),
                "tensor_mb": round(layers.total / 1e6, 1),
            }
        )
    return records


class _Bytes(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts what matrix products and convolutions read and write."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "convolution", "bmm"):
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 1]
            read = sum(t.numel() for t in tensors) * (2 if name == "bmm" else 1)
            # Attention's scores stay in registers.
            self.total += read + 2 * out.numel() if name != "bmm" else min(t.numel() for t in (*tensors, out)) * 4
        return out


def ceilings(threads: int, side: int = 2048, copied: int = 1 << 28) -> dict[str, float]:
    """What this machine reaches at best: GOP/s of matrix products in int8, bf16 and fp32, and GB/s of a copy.

    Args:
        threads: Of each of them.
        side: Rows and columns of the matrices.
        copied: Bytes of the copy, more than caches hold.
    """
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator) for _ in range(2))
    half_a, half_b = a.bfloat16(), b.bfloat16()
    operations = 2 * side**3 / 1e9
    found = {
        "fp32": operations / _fastest(lambda: a @ b),
        "bf16": operations / _fastest(lambda: half_a @ half_b),
    }
    if why_no_kernels() is None:
        load_kernels()
        codes = torch.randint(0, 256, (side, side), generator=generator, dtype=torch.uint8)
        packed, _ = torch.ops.qsam2.pack_weight(codes, 8)
        table, ones = torch.zeros(16, dtype=torch.int8), torch.ones(side)
        tail = (None, "none", torch.bfloat16, 1.0, 0.0, 255)
        found["int8"] = operations / _fastest(
            lambda: torch.ops.qsam2.linear(codes, packed, 8, table, ones, ones, *tail)
        )
    large = torch.empty(copied, dtype=torch.uint8)
    target = torch.empty_like(large)
    found["copy GB/s"] = 2 * large.numel() / 1e9 / _fastest(lambda: target.copy_(large))
    return {name: round(value, 1) for name, value in found.items()}


def _fastest(run: Callable[[], Any], rounds: int = 10) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
