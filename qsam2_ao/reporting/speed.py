"""How long each layer of a deployed model takes on this machine, beside the same layer in float."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, nn

from ..compat.quiet import propagate_quietly
from ..deploy.kernels.linear import Int8Conv2d, Int8Linear
from ..deploy.kernels.values import ValueProjection
from ..deploy.onednn.linear import OneDNNConv2d, OneDNNLinear
from ..deploy.packed import PackedIntxTensor
from ..native import fast_float
from ..predictors import as_video_predictor, eval_mode, predictor_state
from ..progress import tqdm
from ..stage import stage_of

_FRAMES = 3
"""Of the video that shows the layers' input sizes: a prompt, and memories of one and of two frames."""
_TOLERANCE = 1.1
"""Times closer than this are equal: both are of milliseconds or less."""


@dataclass(frozen=True)
class LayerTime:
    """One layer alone, without the rounding of its input.

    Attributes:
        shape: Of its input.
        ms: As it is lowered, milliseconds.
        float_ms: In bfloat16, or in float32 on CPUs where that is faster (without AVX512-BF16), milliseconds.
    """

    shape: tuple[int, ...]
    ms: float
    float_ms: float

    @property
    def slower(self) -> bool:
        """Whether the lowered layer takes longer, by more than what such short times vary."""
        return self.ms > _TOLERANCE * self.float_ms


@torch.inference_mode()
def layer_times(model: SAM2Base, *, rounds: int = 7, progress: bool = True) -> dict[str, LayerTime]:
    """Time every quantized layer on inputs of the sizes that it gets in a video.

    Args:
        model: From ``load_qsam2`` with any target, on its device.
        rounds: Of which the median counts; the lowered and the float layer take turns.
        progress: Whether to show a bar.

    Returns:
        Layer name, as in ``coverage_report`` -> its times; layers that a video does not use are absent.

    Example:
        >>> times = layer_times(load_qsam2("tiny-w4a8.safetensors", target="auto"), rounds=1, progress=False)
        >>> slower = [name for name, layer in times.items() if layer.slower]
    """
    inputs = _inputs(model)
    times = {}
    for name, (module, x, residual) in tqdm(inputs.items(), desc="timing layers", unit="layer", disable=not progress):
        lowered, reference = _lowered(module, x, residual), _reference(module, x, residual)
        pairs = [(_milliseconds(lowered, x.device), _milliseconds(reference, x.device)) for _ in range(rounds + 1)][1:]
        ms, float_ms = (round(statistics.median(values), 4) for values in zip(*pairs, strict=True))
        times[name] = LayerTime(tuple(x.shape), ms, float_ms)
    return times


def _inputs(model: SAM2Base) -> dict[str, tuple[Any, Tensor, Tensor | None]]:
    """Name of each quantized layer that runs -> the module, its first input, and what is added to its output."""
    names = {module: path for path, module in model.named_modules() if _quantized(module)}
    seen: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.setdefault(module, (args[0].clone(), args[1].clone() if len(args) > 1 else None))

    hooks = [module.register_forward_pre_hook(keep) for module in names]
    try:
        predictor = as_video_predictor(model)
        side = model.image_size
        noise = np.random.default_rng(0).integers(0, 256, (_FRAMES, side, side, 3), np.uint8)
        with eval_mode(model), torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
            state = predictor_state(predictor, list(noise))
            predictor.add_new_points_or_box(state, 0, 1, points=[[side / 2, side / 2]], labels=[1])
            for _ in propagate_quietly(predictor, state):
                pass
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, tuple[Any, Tensor, Tensor | None]] = {}
    for record in stage_of(model).layers:
        for module, kept in seen.items():
            path = names[module]
            # Layers of the bands that the first blocks run in are below them.
            if path == record.name or (path.startswith(f"{record.part}.") and path.endswith(f".{record.layer}")):
                found.setdefault(record.name, (module, *kept))
    return found


def _quantized(module: nn.Module) -> bool:
    lowered = isinstance(module, Int8Linear | ValueProjection | OneDNNLinear)
    return lowered or isinstance(getattr(module, "weight", None), PackedIntxTensor)


def _lowered(module: nn.Module, x: Tensor, residual: Tensor | None) -> Callable[[], Any]:
    def run() -> Any:
        with torch.autocast(x.device.type, torch.bfloat16):
            return module(x) if residual is None else module(x, residual)

    return run


def _reference(module: Any, x: Tensor, residual: Tensor | None) -> Callable[[], Any]:
    """The same product, activation and sum in float."""
    dtype = fast_float(x.device)
    x = x.to(dtype) if x.is_floating_point() else torch.randn(x.shape, device=x.device, dtype=dtype)
    if isinstance(module, Int8Linear | ValueProjection | OneDNNLinear):
        kernel = module.kernel if isinstance(module, Int8Conv2d | OneDNNConv2d) else ()
        channels = (x.shape[1] if kernel else x.shape[-1]) // getattr(module, "groups", 1)
        weight = torch.randn(module.out_features, channels, *kernel, device=x.device, dtype=dtype)
        bias: Tensor | None = torch.randn(module.out_features, device=x.device, dtype=dtype)
        activation = module.activation
    else:
        weight, activation = module.weight.dequantize(dtype), "none"
        bias = module.bias if module.bias is None else module.bias.to(dtype)
    if residual is not None:
        residual = residual.to(dtype)

    def run() -> Tensor:
        if weight.dim() == 2:
            out = F.linear(x, weight, bias)
        else:
            groups = getattr(module, "groups", 1)
            out = F.conv2d(x, weight, bias, module.stride, module.padding, groups=groups)
        if activation != "none":
            out = F.gelu(out) if activation == "gelu" else F.relu(out)
        return out if residual is None else out + residual

    return run


def _milliseconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - started)
