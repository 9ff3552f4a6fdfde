"""What the kernels of a GPU compute beside float64 on the CPU, and a model on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...checkpoint import load_qsam2
from ...deploy.kernels.codes import NO_GRID
from ...native.cuda import kernels, on_its_device
from ...quantizers.affine import fake_quantize_affine, quantize_affine
from ...quantizers.grids import activation_grid, weight_grid
from ...quantizers.statistics import RangeStats
from ..inference.workload import InferenceWorkload

Record = dict[str, Any]


def check_operators(device: torch.device, *, tiles: int | None = None) -> list[Record]:
    """Every kernel on small tensors that do not divide.

    Args:
        device: A GPU; a CPU where Triton runs in its interpreter.
        tiles: How many of the matrix multiplication's tiles to check; all by default.

    Returns:
        Records {what, worst, allowed, passed}.
    """
    return [
        *_products(device, tiles),
        *_rounding(device),
        *_attention(device),
        *_training(device),
    ]


def check_model(workload: InferenceWorkload, preset: str, device: torch.device) -> list[Record]:
    """Features of the image encoder on a GPU against the same file in float32 on the CPU: the relative error."""
    x = torch.randn(1, 3, workload.size, workload.size, generator=torch.Generator().manual_seed(0))
    path = workload.packed(preset)
    with torch.inference_mode():
        expected = load_qsam2(path, target="packed").image_encoder(x)["backbone_fpn"]
        found = load_qsam2(path, device=str(device), target="int8").image_encoder(x.to(device))["backbone_fpn"]
    errors = [float((a.cpu().float() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return [_record(f"{workload.model} {preset}, features", max(errors), 0.1)]


def _record(what: str, worst: float | Tensor, allowed: float) -> Record:
    worst = float(worst)
    return {"what": what, "worst": worst, "allowed": allowed, "passed": worst <= allowed}  # NaN does not pass


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _operators(device: torch.device) -> dict[str, Callable[..., Any]]:
    return {name: _launched(kernel, device) for name, kernel in kernels().items()}


def _launched(kernel: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    return on_its_device(kernel) if device.type == "cuda" else kernel


def _products(device: torch.device, tiles: int | None) -> Iterable[Record]:
    from ...native.triton_linear import TILES, as_eight_bits

    run, n, k, rows = _operators(device), 200, 228, 150
    x = torch.randint(-128, 128, (rows, k), generator=_seeded(), dtype=torch.int8)
    one, zero = torch.ones(n, device=device), torch.zeros(n, device=device)
    for bits in (2, 3, 4, 8):
        codes = torch.randint(0, 2**bits, (n, k), generator=_seeded(), dtype=torch.uint8)
        table = (2 * torch.arange(16) - (2**bits - 1)).clamp(-128, 127).to(torch.int8).to(device)
        values = codes.long() - 128 if bits == 8 else 2 * codes.long() - (2**bits - 1)
        exact = x.long() @ values.T
        packed, _ = run["pack_weight"](codes.to(device), bits)
        forms = {"": (packed, bits)}
        if bits < 8:
            forms[", kept as int8"] = (as_eight_bits(packed, bits, table, k), 8)
        for form, (weight, width) in forms.items():
            worst = 0.0
            for tile in TILES[:tiles]:
                arguments = (weight, width, table, one, zero, None, "none", torch.float32, *NO_GRID, tile)
                out = run["linear"](x.to(device), *arguments)
                worst = max(worst, float((out.cpu().long() - exact).abs().max()))
            yield _record(f"sums of products, {bits} bits{form}", worst, 0)
        scale, shift = torch.full((n,), 2.0 / k / 2**bits), torch.linspace(-3, 3, n)
        codes_out = run["linear"](
            *(x.to(device), packed, bits, table, scale.to(device) / 32, shift.to(device), None, "gelu"),
            *(torch.uint8, 0.03, 20.0, 255),
        )
        expected = F.gelu(exact.double() * scale.double() / 32 + shift.double())
        rounded = quantize_affine(expected, torch.tensor(0.03), torch.tensor(20.0), 0, 255)
        other = (codes_out.cpu().int() + 128 != rounded.int()).double().mean()
        yield _record(f"codes behind GELU that differ, {bits} bits", other, 1e-3)


def _rounding(device: torch.device) -> Iterable[Record]:
    run = _operators(device)
    x = torch.randn(300, 112, generator=_seeded()) * 4
    scale, zero_point = torch.tensor(0.037), torch.tensor(101.0)
    expected = quantize_affine(x, scale, zero_point, 0, 255)
    found = run["quantize"](x.to(device), float(scale), float(zero_point), 255).cpu().int() + 128
    yield _record("codes of floats", (found - expected.int()).abs().max(), 0)
    gain, bias = torch.rand(112, generator=_seeded()) + 0.5, torch.randn(112, generator=_seeded())
    exact = F.layer_norm(x.double(), (112,), gain.double(), bias.double(), 1e-6)
    on_device = (x.to(device), gain.to(device), bias.to(device), 1e-6)
    found = run["layer_norm"](*on_device, torch.float32, *NO_GRID).cpu()
    yield _record("layer norm", (found - exact).abs().max(), 1e-4)
    found = run["layer_norm"](*on_device, torch.uint8, 0.03, 128.0, 255).cpu().int() + 128
    rounded = quantize_affine(exact, torch.tensor(0.03), torch.tensor(128.0), 0, 255)
    yield _record("codes behind a layer norm", (found - rounded.int()).abs().max(), 1)


def _attention(device: torch.device) -> Iterable[Record]:
    run = _operators(device)
    for name, width, keys in (("values as wide as keys", 64, 300), ("narrow values", 24, 2100)):
        q, k, v = (
            torch.randn(2, 1, n, c, generator=_seeded()).bfloat16() for n, c in ((150, 64), (keys, 64), (keys, width))
        )
        exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
        there = q.to(device), k.to(device), v.to(device), 64**-0.5
        for form, int8_scores, allowed in (("", False, 2e-2), (", scores in int8", True, 5e-2)):
            found = run["attention"](*there, int8_scores).transpose(1, 2).cpu()
            yield _record(f"attention, {name}{form}", (found - exact).abs().max(), allowed)
        floats = found.transpose(1, 2).float()
        codes = run["attention"](*there, True, torch.uint8, 0.01, 128.0, 255).cpu().int() + 128
        rounded = quantize_affine(floats, torch.tensor(0.01), torch.tensor(128.0), 0, 255)
        yield _record(f"codes of attention, {name}", (codes - rounded.int()).abs().max(), 0)
    heads, c, window = 2, 24, 8
    qkv = torch.randn(1, 16, 16, 3 * heads * c, generator=_seeded()).bfloat16()
    pad = torch.zeros(3 * heads * c).bfloat16()
    found = run["window_attention"](qkv.to(device), pad.to(device), heads, window, 1).cpu()
    windows = (
        qkv.double().unflatten(1, (2, window)).unflatten(3, (2, window)).transpose(2, 3).flatten(3, 4).flatten(0, 2)
    )
    q, k, v = windows.unflatten(2, (3, heads, c)).permute(2, 0, 3, 1, 4)
    exact = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    exact = exact.reshape(1, 2, 2, window, window, heads * c).transpose(2, 3).reshape(1, 16, 16, heads * c)
    yield _record("attention in windows", (found - exact).abs().max(), 2e-2)
    arguments = qkv.to(device), pad.to(device), heads, window, 1
    codes = run["window_attention"](*arguments, torch.uint8, 0.01, 128.0, 255).cpu().int() + 128
    rounded = quantize_affine(found.float(), torch.tensor(0.01), torch.tensor(128.0), 0, 255)
    yield _record("codes of attention in windows", (codes - rounded.int()).abs().max(), 0)


def _training(device: torch.device) -> Iterable[Record]:
    from ...quantizers.lsc_triton import fake_quantize, gradients

    x, grad = (torch.randn(40, 300, generator=torch.Generator().manual_seed(i)) for i in range(2))
    scale, zero_point = torch.rand(40, generator=_seeded()) * 0.1 + 0.1, torch.full((40,), 7.5)
    settings = (0, 15, "channel", None)
    expected = fake_quantize_affine(x, scale[:, None], zero_point[:, None], 0, 15)
    there = [t.to(device) for t in (grad, x, scale, zero_point)]
    found = _launched(fake_quantize, device)(*there[1:], *settings)
    yield _record("LSC, fake quantization", (found.cpu() - expected).abs().max(), 0)
    ends = (-1e-6, 15 + 1e-5)
    to_x, total = (t.cpu() for t in _launched(gradients, device)(*there, ends, *settings))
    steps = x / scale[:, None] + zero_point[:, None]
    inside = (steps > ends[0]) & (steps < ends[1])
    distance = steps.clamp(0, 15).round() - zero_point[:, None] - torch.where(inside, steps - zero_point[:, None], 0)
    yield _record("LSC, gradient to the input", (to_x - grad * inside).abs().max(), 0)
    yield _record("LSC, gradient to alpha", (total - (distance.double() * grad).sum(1)).abs().max(), 1e-3)
    yield from _training_ranges(x, device)


def _training_ranges(x: torch.Tensor, device: torch.device) -> Iterable[Record]:
    from ...quantizers.lsc_range_triton import activation_range, weight_range

    alpha = torch.full((40,), 1.7)
    rows = x.double()
    own = [t.float() for t in (rows.mean(1), rows.std(1, correction=0), rows.amin(1), rows.amax(1))]
    grid = weight_grid("asymmetric", 4)
    there = [torch.zeros(40, device=device) for _ in own]
    alphas = alpha.to(device), torch.zeros(40, device=device)
    clip = _launched(weight_range, device)(x.to(device), grid, "channel", None, there, alphas, 1.0)
    expected = grid.clip_range(RangeStats(*own), alpha)
    yield _record("LSC, range of a weight", (clip.scale.cpu() - expected.scale).abs().max(), 1e-5)
    one = torch.ones(1, device=device)
    running = [one.clone() for _ in own]
    everything = torch.stack([rows.mean(), rows.std(correction=0), rows.min(), rows.max()])
    arguments = (activation_grid(8), [one] * 4, None, running, (one, one * 0), 0.0, 1.0, True)
    _launched(activation_range, device)(x.to(device), *arguments)
    yield _record("LSC, statistics of an activation", (torch.cat(running).cpu() - everything).abs().max(), 1e-5)
