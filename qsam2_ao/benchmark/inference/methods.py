"""What is compared: PyTorch in several dtypes, torchao, OpenVINO, ONNX Runtime, and ours."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from sam2.modeling.sam2_base import SAM2Base
from torch import nn

from ...checkpoint import load_qsam2
from ...deploy.kernels.attention import use_int8_scores
from ...deploy.targets import lower_float
from ...native import fast_float
from .parts import ATTENTION, BATCH, ENCODER, FRAME, IMAGE, PARTS, VIDEO, Run
from .runtimes import onnx_file, onnx_runtime, openvino, openvino_file
from .workload import InferenceWorkload

REFERENCE = "torch bf16 compiled"
"""The method that every ratio compares with."""
SCORES = "qsam2 W4A8, int8 scores"
"""Ours with ``use_int8_scores``."""
_COMPILED = ("image_encoder", "memory_attention", "memory_encoder", "sam_mask_decoder")

_PRECISION = "bf16" if fast_float() == torch.bfloat16 else "f32"
"""What OpenVINO computes in beside int8: told to use bfloat16, it emulates it where the CPU has none."""

_NETWORK = tuple(part for part in PARTS if part not in (VIDEO, IMAGE, BATCH, FRAME))


@dataclass(frozen=True)
class InferenceMethod:
    """One column.

    Attributes:
        name: As the results call it.
        prepare: ``workload -> (part -> what to time)``; loads or converts what is needed.
        parts: Those that it is timed on.
        file: Makes what ``prepare`` loads, where there is none yet; None for what is built in memory.
    """

    name: str
    prepare: Callable[[InferenceWorkload], Callable[[str], Run]]
    parts: tuple[str, ...] = tuple(PARTS)
    file: Callable[[InferenceWorkload], Path] | None = None


def runs(
    model: SAM2Base, workload: InferenceWorkload, context: Callable[[], AbstractContextManager[Any]]
) -> Callable[[str], Run]:
    """Part -> what to time of a model, inside a context such as autocast."""

    def prepare(part: str) -> Run:
        with torch.inference_mode(), context():
            run = PARTS[part](model, workload.image())

        def within() -> None:
            with torch.inference_mode(), context():
                run()

        return within

    return prepare


ONE_DNN: dict[str, Any] = {"options": {"freezing": True}}
"""Settings of ``torch.compile`` for :func:`one_dnn`; dynamo takes the graph of another method where they are alike."""


def _bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


@contextlib.contextmanager
def one_dnn() -> Iterator[None]:
    """Gives float32 linear layers of frozen graphs to oneDNN, on some CPUs much faster than MKL.

    Inductor does so where TF32 is allowed. No CPU with AVX512 or less has that: oneDNN stays in float32.
    """
    from torch._inductor import config

    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with config.patch(freezing=True, fx_graph_cache=False):
            yield
    finally:
        matmul.fp32_precision = before


@contextlib.contextmanager
def _frozen() -> Iterator[None]:
    from torch._inductor import config

    with config.patch(freezing=True), _bf16():
        yield


def compile_float(model: SAM2Base, **settings: Any) -> SAM2Base:
    """A float model with the parts compiled that ``SAM2VideoPredictorVOS`` of the sam2 package compiles.

    Args:
        model: Not modified.
        settings: Of ``torch.compile``. Dynamo compiles a forward anew for other settings, but not for other inductor
            configs around it.
    """
    # The forward of a class is one code object for dynamo, whatever method, dtype or size it is compiled for.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    model = copy.copy(model)
    model._modules = dict(model._modules)
    for name in _COMPILED:
        part = model.get_submodule(name)
        compiled = copy.copy(part)
        compiled.forward = torch.compile(part.forward, **settings)  # type: ignore[method-assign]
        model._modules[name] = compiled
    return model


def float_runs(
    workload: InferenceWorkload,
    compiled: bool,
    context: Callable[[], AbstractContextManager[Any]],
    **settings: Any,
) -> Callable[[str], Run]:
    """The same of the float model, perhaps compiled, with settings of ``torch.compile``."""
    model = _float_model(workload)
    return runs(compile_float(model, **settings) if compiled else model, workload, context)


@cache
def _float_model(workload: InferenceWorkload) -> SAM2Base:
    """One for all methods that leave it as it is: the largest take a gigabyte each."""
    return workload.build()


def _our_attention(workload: InferenceWorkload) -> Callable[[str], Run]:
    return runs(lower_float(workload.build()), workload, nullcontext)


def _torchao(
    workload: InferenceWorkload, config: Callable[[], Any], takes: Callable[[nn.Module, str], bool]
) -> Callable[[str], Run]:
    from torchao.quantization import quantize_

    model = workload.build().bfloat16()
    quantize_(model, config(), takes)
    return runs(compile_float(model), workload, _frozen)


# Its inductor settings are for GPUs, and would stay set for the other methods.
def _int8_dynamic() -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig

    return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)


def _int4_weight_only() -> Any:
    from torchao.prototype.quantization.int4.inference_workflow import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)


def _linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear)


def _int4_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and module.out_features % 16 == 0 and module.in_features % 32 == 0


def _ours(workload: InferenceWorkload, preset: str, int8_scores: bool = False) -> Callable[[str], Run]:
    model = load_qsam2(workload.packed(preset), target="auto")
    if int8_scores:
        use_int8_scores(model, image_encoder=True)

    # What stays float is in bfloat16 only where that is fast, or where SAM2's video predictor insists.
    def prepare(part: str) -> Run:
        context = _bf16 if part in (VIDEO, FRAME) or fast_float() == torch.bfloat16 else nullcontext
        return runs(model, workload, context)(part)

    return prepare


def _qsam2(preset: str, parts: tuple[str, ...] = tuple(PARTS)) -> InferenceMethod:
    return InferenceMethod(
        f"qsam2 {preset.upper()}",
        partial(_ours, preset=preset),
        parts,
        partial(InferenceWorkload.packed, preset=preset),
    )


FP32_EAGER = InferenceMethod("torch fp32 eager", partial(float_runs, compiled=False, context=nullcontext), (ENCODER,))
FP32_COMPILED = InferenceMethod(
    "torch fp32 compiled", partial(float_runs, compiled=True, context=nullcontext), (ENCODER,)
)
FP32_ONE_DNN = InferenceMethod(
    "torch fp32 compiled, oneDNN", partial(float_runs, compiled=True, context=one_dnn, **ONE_DNN), (ENCODER,)
)
FP32_OPENVINO = InferenceMethod("OpenVINO fp32", partial(openvino, precision="f32"), (ENCODER,), openvino_file)

METHODS: tuple[InferenceMethod, ...] = (
    FP32_EAGER,
    replace(FP32_COMPILED, parts=(*_NETWORK, IMAGE)),
    FP32_ONE_DNN,
    InferenceMethod(REFERENCE, partial(float_runs, compiled=True, context=_bf16)),
    InferenceMethod("torch bf16, our attention", _our_attention),
    InferenceMethod("torchao int8 dynamic", partial(_torchao, config=_int8_dynamic, takes=_linear), (ENCODER,)),
    InferenceMethod(
        "torchao int4 weight-only", partial(_torchao, config=_int4_weight_only, takes=_int4_linear), (ENCODER,)
    ),
    FP32_OPENVINO,
    InferenceMethod("OpenVINO bf16", partial(openvino, precision="bf16"), (ENCODER,), openvino_file),
    InferenceMethod(
        "OpenVINO INT8",
        partial(openvino, precision=_PRECISION, quantized=True),
        (ENCODER,),
        partial(openvino_file, quantized=True),
    ),
    InferenceMethod("ONNX Runtime fp32", onnx_runtime, (ENCODER,), onnx_file),
    InferenceMethod(
        "ONNX Runtime dynamic int8",
        partial(onnx_runtime, quantized=True),
        (ENCODER,),
        partial(onnx_file, quantized=True),
    ),
    _qsam2("w8a8", _NETWORK),
    _qsam2("w4a8"),
    InferenceMethod(
        SCORES,
        partial(_ours, preset="w4a8", int8_scores=True),
        (ENCODER, ATTENTION, FRAME),
        partial(InferenceWorkload.packed, preset="w4a8"),
    ),
    _qsam2("w3a8", _NETWORK),
    _qsam2("w2a8"),
    _qsam2("w4a16", _NETWORK),
)
