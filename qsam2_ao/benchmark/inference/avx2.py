"""Older processors: this one, kept to AVX2 from the start of a process; oneDNN's int8 products beside float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from ...checkpoint import load_qsam2
from ...deploy.onednn.processor import why_no_onednn
from ..processes import alone
from .methods import InferenceMethod, float_runs, runs
from .parts import ATTENTION, DECODER, ENCODER, Run
from .timing import measure
from .workload import InferenceWorkload

ENVIRONMENT = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
FLOAT = "torch fp32 eager"
PARTS = (ENCODER, ATTENTION, DECODER)


def avx2_times(workload: InferenceWorkload, parts: Sequence[str] = PARTS) -> list[dict[str, Any]]:
    """Time parts in float32 and in the target "onednn", each part in a process that is kept to AVX2.

    Args:
        workload: Model, size and threads.
        parts: Of ``PARTS``.

    Returns:
        Records as of :func:`~qsam2_ao.benchmark.inference.timing.measure`, whose ratios are to float32; none where
        oneDNN's products do not run.
    """
    if why_no_onednn(torch.device("cpu")) is not None:
        return []
    found = (alone(measure, workload, part, METHODS, FLOAT, environment=ENVIRONMENT) for part in parts)
    return [record for records in found for record in records]


def _onednn(workload: InferenceWorkload, preset: str) -> Callable[[str], Run]:
    return runs(load_qsam2(workload.packed(preset), target="onednn"), workload, nullcontext)


METHODS = (
    InferenceMethod(FLOAT, partial(float_runs, compiled=False, context=nullcontext), PARTS),
    InferenceMethod("torch fp32 compiled", partial(float_runs, compiled=True, context=nullcontext), (ENCODER,)),
    *(
        InferenceMethod(
            f"qsam2 {preset.upper()}, onednn",
            partial(_onednn, preset=preset),
            PARTS,
            partial(InferenceWorkload.packed, preset=preset),
        )
        for preset in ("w8a8", "w4a8")
    ),
)
