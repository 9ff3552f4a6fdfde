"""The image encoder on a GPU: torch's in bfloat16 and int8, and ours, each in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ...checkpoint import load_qsam2
from ...deploy.kernels.linear import use_int8_weights
from ..inference.workload import InferenceWorkload
from .clock import Clock
from .pieces import products_of, time_products

Record = dict[str, Any]
BASELINE = "torch bf16, max-autotune"
_MOST_SHAPES = 12


def _baseline(workload: InferenceWorkload, device: torch.device) -> nn.Module:
    encoder = workload.build().image_encoder.to(device, torch.bfloat16)
    encoder.compile(mode="max-autotune")
    return encoder


def _torchao(workload: InferenceWorkload, device: torch.device) -> nn.Module:
    """Static activations, int8 weights: ``torch._int_mm`` with what is around it fused by inductor."""
    from torchao.quantization import Int8StaticActivationInt8WeightConfig, PerTensor, quantize_

    encoder = workload.build().image_encoder.to(device, torch.bfloat16)
    scale = torch.tensor(0.05, device=device, dtype=torch.bfloat16)
    config = Int8StaticActivationInt8WeightConfig(
        act_quant_scale=scale, granularity=PerTensor(), set_inductor_config=False
    )
    quantize_(encoder, config)
    encoder.compile(mode="max-autotune")
    return encoder


def _ours(preset: str, *, int8_weights: bool = False) -> Callable[[InferenceWorkload, torch.device], nn.Module]:
    def load(workload: InferenceWorkload, device: torch.device) -> nn.Module:
        model = load_qsam2(workload.packed(preset), device=str(device), target="int8")
        return (use_int8_weights(model) if int8_weights else model).image_encoder  # type: ignore[return-value]

    return load


METHODS: dict[str, Callable[[InferenceWorkload, torch.device], nn.Module]] = {
    BASELINE: _baseline,
    "qsam2 W8A8": _ours("w8a8"),
    "qsam2 W4A8": _ours("w4a8"),
    "qsam2 W4A8, weights as int8": _ours("w4a8", int8_weights=True),
    "torchao int8 static, max-autotune": _torchao,
}
"""Name -> the encoder; what is compiled with "max-autotune" is in a CUDA graph by itself."""


def time_encoder(workload: InferenceWorkload, method: str, batch: int, device: torch.device) -> Record:
    """Milliseconds of a batch, and the most memory that it took.

    Returns:
        A record {model, size, batch, method, ms, memory_mb}.
    """
    clock = Clock(device)
    encoder = METHODS[method](workload, device)
    x = _input(workload, method, batch, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        run = partial(encoder, x)
        ms = clock.milliseconds(run if "max-autotune" in method else clock.graphed(run))
    peak = round(torch.cuda.max_memory_allocated(device) / 1e6) if device.type == "cuda" else None
    where = {"model": workload.model, "size": workload.size, "batch": batch}
    return {**where, "method": method, "ms": ms, "memory_mb": peak}


def time_shapes(workload: InferenceWorkload, batch: int, device: torch.device, *, rounds: int = 20) -> list[Record]:
    """The largest matrix products of an encoder by every tile (see :func:`time_products`)."""
    method = "qsam2 W8A8"
    encoder, x = METHODS[method](workload, device), _input(workload, method, batch, device)
    with torch.inference_mode():
        shapes = products_of(encoder, lambda: encoder(x))
    return time_products(shapes[:_MOST_SHAPES], device, rounds=rounds)


def profile_encoder(workload: InferenceWorkload, method: str, device: torch.device, shown: int = 25) -> list[Record]:
    """What the time of an image goes to, by kernel: records {kernel, calls, us}, the longest first."""
    encoder, x, clock = METHODS[method](workload, device), _input(workload, method, 1, device), Clock(device)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with torch.inference_mode():
        for _ in range(2):
            encoder(x)
        clock.wait()
        with profile(activities=[activity]) as found:
            encoder(x)
            clock.wait()
    rows = [
        {"kernel": event.key, "calls": event.count, "us": round(_own_time(event, device), 1)}
        for event in found.key_averages()
    ]
    return sorted((row for row in rows if row["us"]), key=lambda row: -float(row["us"]))[:shown]


def _own_time(event: Any, device: torch.device) -> float:
    return float(event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total)


def _input(workload: InferenceWorkload, method: str, batch: int, device: torch.device) -> Tensor:
    """Pictures in the dtype that a method takes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, workload.size, workload.size, generator=generator).to(device)
    return x.bfloat16() if "max-autotune" in method else x
