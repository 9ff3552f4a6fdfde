"""Processors without AVX512: this one, kept to less from a process's start; what "auto" takes beside its rivals."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ...checkpoint import load_qsam2
from ...deploy.kernels.attention import use_int8_scores
from ...deploy.onednn.processor import why_no_onednn
from ...native.build import cpu_flags
from ..processes import alone
from .methods import FP32_COMPILED, FP32_EAGER, FP32_ONE_DNN, FP32_OPENVINO, InferenceMethod, runs
from .parts import ATTENTION, DECODER, ENCODER, Run
from .runtimes import openvino, openvino_file
from .timing import measure
from .workload import InferenceWorkload

AVX2, AVX_VNNI = "AVX2", "AVX-VNNI"
ENVIRONMENTS = {
    AVX2: {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    AVX_VNNI: {"ONEDNN_MAX_CPU_ISA": "AVX2_VNNI", "ATEN_CPU_CAPABILITY": "avx2"},
}
"""What keeps a process to these instructions and older ones."""
PARTS = (ENCODER, DECODER, ATTENTION)


def kernels_for(instructions: str) -> str:
    """What :func:`~qsam2_ao.native.build.kind` calls the kernels for one of ``ENVIRONMENTS``."""
    return instructions.lower().replace("-", "_")


def avx2_times(
    workload: InferenceWorkload, parts: Sequence[str] = PARTS, instructions: str = AVX2
) -> list[dict[str, Any]]:
    """CPU time of parts on one thread, in float32 and on the target that "auto" takes, in processes without AVX512.

    Args:
        workload: Model and size; its threads do not matter.
        parts: Of ``PARTS``.
        instructions: Of ``ENVIRONMENTS``.

    Returns:
        Records as of :func:`~qsam2_ao.benchmark.inference.timing.measure`, whose ratios are to float32; none on a CPU
        without these instructions.
    """
    if why_no_onednn(torch.device("cpu")) is not None or (instructions == AVX_VNNI and "avx_vnni" not in cpu_flags()):
        return []
    one = replace(workload, threads=1)
    found = (
        alone(measure, one, part, METHODS, FP32_EAGER.name, time.process_time, environment=ENVIRONMENTS[instructions])
        for part in parts
    )
    return [record for records in found for record in records]


def _load(workload: InferenceWorkload, preset: str, target: str, int8_scores: bool) -> Callable[[str], Run]:
    model = load_qsam2(workload.packed(preset), target=target)
    if int8_scores:
        use_int8_scores(model, image_encoder=True)
    return runs(model, workload, nullcontext)


def _qsam2(preset: str, parts: Sequence[str], target: str = "auto", int8_scores: bool = False) -> InferenceMethod:
    name = f"qsam2 {preset.upper()}" + ("" if target == "auto" else f", {target}")
    prepare = partial(_load, preset=preset, target=target, int8_scores=int8_scores)
    file = partial(InferenceWorkload.packed, preset=preset)
    return InferenceMethod(name + ", int8 scores" * int8_scores, prepare, tuple(parts), file)


METHODS = (
    replace(FP32_EAGER, parts=PARTS),
    FP32_COMPILED,
    FP32_ONE_DNN,
    FP32_OPENVINO,
    InferenceMethod(
        "OpenVINO INT8",
        partial(openvino, precision="f32", quantized=True),
        (ENCODER,),
        partial(openvino_file, quantized=True),
    ),
    _qsam2("w4a8", PARTS, "onednn"),
    _qsam2("w8a8", (ENCODER, DECODER)),
    _qsam2("w4a8", PARTS),
    _qsam2("w4a8", (ENCODER, ATTENTION), int8_scores=True),
    _qsam2("w2a8", (ENCODER, DECODER)),
)
