"""Times of the pieces: matrix products of every shape by every tile, and attention by torch's backends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...deploy.kernels.linear import Int8Linear
from ...native.cuda import kernels
from .clock import Clock

Record = dict[str, Any]
_BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
ATTENTION = {
    "Hiera's global attention": (1, 8, 4096, 4096, 96, 96),
    "memory attention, 7 frames": (1, 1, 4096, 28736, 256, 256),
    "memory attention, 7 frames, values projected after": (1, 1, 4096, 28736, 256, 64),
}
"""Name -> batch, heads, queries, keys, channels of keys, channels of values; at 1024 pixels."""


def products_of(model: nn.Module, run: Callable[[], Any]) -> list[tuple[int, int, int]]:
    """Rows, outputs and inputs of the matrix products on int8 that a call makes, each shape once, the largest first."""
    found: dict[tuple[int, int, int], None] = {}

    def look(module: Int8Linear, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        found[out.numel() // module.out_features, module.out_features, module.sums_over] = None

    hooks = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, Int8Linear)]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return sorted(found, key=lambda shape: -shape[0] * shape[1] * shape[2])


def time_products(
    shapes: Sequence[tuple[int, int, int]], device: torch.device, *, bits: Sequence[int] = (8, 4), rounds: int = 20
) -> list[Record]:
    """Each shape by each tile, with GELU and codes out, beside ``torch._int_mm`` and bfloat16, which only multiply.

    Returns:
        Records {rows, n, k, bits, ms: {tile: ms}, chosen, best, int_mm, bf16}; a tile that cannot run is None.
    """
    from ...native.triton_linear import TILES, choose_tile, pack_weight

    linear, clock, records = kernels()["linear"], Clock(device), []
    for rows, n, k in shapes:
        x = torch.zeros(rows, k, dtype=torch.int8, device=device)
        one = torch.ones(n, device=device)
        half_x, half_w = x.bfloat16(), torch.zeros(n, k, dtype=torch.bfloat16, device=device)
        plain = torch.zeros(k, n, dtype=torch.int8, device=device)
        beside = {
            "int_mm": _ms(clock, partial(torch._int_mm, x, plain), rounds),
            "bf16": _ms(clock, partial(F.linear, half_x, half_w), rounds),
        }
        for width in bits:
            weight, _ = pack_weight(torch.zeros(n, k, dtype=torch.uint8, device=device), width)
            table = (2 * torch.arange(16, device=device) - 15).to(torch.int8)
            tail = (table, one, one, None, "gelu", torch.uint8, 0.02, 20.0, 255)
            found = {
                _name(tile): _ms(clock, partial(linear, x, weight, width, *tail, tile), rounds)
                for tile in dict.fromkeys((*TILES, choose_tile(rows, n)))
            }
            best = min((t for t in found if found[t] is not None), key=lambda t: found[t] or 0.0, default=None)
            shape = {"rows": rows, "n": n, "k": k, "bits": width}
            records.append({**shape, "ms": found, "chosen": _name(choose_tile(rows, n)), "best": best, **beside})
    return records


def time_attention(
    device: torch.device, cases: dict[str, tuple[int, ...]] | None = None, *, rounds: int = 20
) -> list[Record]:
    """Attention in bfloat16 by each of torch's backends, and by the kernels; None where a backend has none."""
    clock, records = Clock(device), []
    for name, (batch, heads, queries, keys, channels, width) in (cases or ATTENTION).items():
        q, k, v = (
            torch.randn(batch, heads, n, c, device=device, dtype=torch.bfloat16)
            for n, c in ((queries, channels), (keys, channels), (keys, width))
        )

        found: dict[str, float | None] = {}
        for backend in _BACKENDS:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                found[backend.lower()] = _ms(clock, partial(F.scaled_dot_product_attention, q, k, v), rounds)
        for method, int8_scores in (("qsam2", False), ("qsam2, int8 scores", True)):
            ours = partial(kernels()["attention"], q, k, v, q.shape[-1] ** -0.5, int8_scores)
            found[method] = _ms(clock, ours, rounds)
        records.append({"attention": name, "ms": found})
    return records


def _ms(clock: Clock, run: Callable[[], Any], rounds: int) -> float | None:
    """None where the device, or a backend, has no such kernel: too much shared memory, a shape that is not taken."""
    try:
        with torch.inference_mode():
            return clock.milliseconds(clock.graphed(run), rounds)
    except Exception as error:  # torch's and Triton's are of many kinds
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        clock.wait()
        return None


def _name(tile: Any) -> str:
    return f"{tile.rows} x {tile.columns * tile.parts}, {tile.warps} warps, {tile.stages} stages"
