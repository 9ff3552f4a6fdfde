"""What this machine has for quantized models, what is missing, and the command that brings it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..checkpoint import load_qsam2
from ..compat.torchvision_ops import operators_missing
from ..deploy.targets import TARGETS, auto_target
from ..errors import QSAM2Error
from ..models.embedded import load_embedded
from ..native import build
from ..optional import CALLED, EXTRAS
from ..predictors import image_predictor
from ..reporting.environment import environment
from .models import save_embedded_w4a8

#: What the kernels and torch's own products make use of, as Linux names it.
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
_SECONDS = 1.0
"""For the timing of one target."""


@dataclass(frozen=True)
class TargetState:
    """Whether a target can run on a device, and how fast the embedded model's encoder then is.

    Attributes:
        name: As ``load_qsam2`` takes it; "float" is the model before quantization.
        device: "cpu" or "cuda".
        reason: Why it cannot run there; None where it can.
        milliseconds: Median time for one image; None where it was not measured.
    """

    name: str
    device: str
    reason: str | None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Finding:
    """Something that is not as it could be.

    Attributes:
        problem: What is missing or out of step, and what that costs.
        remedy: What to do about it.
    """

    problem: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What a machine has.

    Attributes:
        environment: Processor, cores, operating system, Python and versions of packages.
        cpu_features: Of :data:`CPU_FEATURES`, those that the processor has.
        memory_gib: Main memory; None where the system does not say.
        gpus: Names and memory of the GPUs.
        kernel_library: Where the compiled CPU kernels are kept; None where there is no place or the processor has none.
        kernels_built: Whether they are there.
        auto: What the target "auto" takes on the CPU, and why.
        targets: Every target on every kind of device.
        findings: What is missing.
    """

    environment: dict[str, str]
    cpu_features: tuple[str, ...]
    memory_gib: float | None
    gpus: tuple[str, ...]
    kernel_library: str | None
    kernels_built: bool
    auto: str
    targets: tuple[TargetState, ...]
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def diagnose(*, timing: bool = True) -> Diagnosis:
    """Look at this machine: processor, packages, kernels, GPU, and the speed of every target.

    The CPU's kernels are compiled where that was never done, which takes half a minute.

    Args:
        timing: Whether to time the targets, which takes some seconds.

    Returns:
        What was found.

    Example:
        >>> "torch" in diagnose(timing=False).environment
        True
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    states = [
        TargetState(name, where, target.why_not(where))
        for where in devices
        for name, target in TARGETS.items()
        if name != "auto"
    ]
    library = _library()
    return Diagnosis(
        environment=environment(*(CALLED.get(package, package) for package in EXTRAS)),
        cpu_features=cpu_features(),
        memory_gib=_memory(),
        gpus=tuple(_gpu(index) for index in range(torch.cuda.device_count())),
        kernel_library=None if library is None else str(library),
        kernels_built=library is not None and library.exists(),
        auto=_auto(),
        targets=_timed(states) if timing else tuple(states),
        findings=tuple(_findings(states)),
    )


def _auto() -> str:
    target, missing = auto_target("cpu")
    means = {
        "onednn": ", the int8 products that torch has",
        "packed": ", which computes in float",
        "dequantized": ", which computes in bfloat16",
    }
    return target if missing is None else f"{target}{means[target]}: {missing}"


def cpu_features() -> tuple[str, ...]:
    """Of :data:`CPU_FEATURES`, those that the processor has; on other systems than Linux what torch says of it."""
    flags = build.cpu_flags()
    if not flags:
        return (torch.backends.cpu.get_cpu_capability().lower(),)
    return tuple(name for name in CPU_FEATURES if name in flags)


def _library() -> Path | None:
    if build.why_unfit_cpu() is not None:
        return None
    try:
        return build.kernel_library()
    except (RuntimeError, OSError):
        return None


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpu(index: int) -> str:
    facts = torch.cuda.get_device_properties(index)
    return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}"


def _timed(states: list[TargetState]) -> tuple[TargetState, ...]:
    """The states with times, and the float model's in front of each device's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embedded-w4a8.safetensors"
        save_embedded_w4a8(path)
        found: list[TargetState] = []
        for device in dict.fromkeys(state.device for state in states):
            found.append(TargetState("float", device, None, _milliseconds(load_embedded().to(device))))
            for state in states:
                if state.device == device:
                    found.append(_time_target(state, path))
        return tuple(found)


def _time_target(state: TargetState, path: Path) -> TargetState:
    if state.reason is not None:
        return state
    try:
        model = load_qsam2(path, device=state.device, target=state.name)
        return TargetState(state.name, state.device, None, _milliseconds(model))
    except (QSAM2Error, RuntimeError) as error:  # a kernel that fails is what the user wants to see, not a traceback
        return TargetState(state.name, state.device, f"It fails: {str(error).strip().splitlines()[0]}")


@torch.inference_mode()
def _milliseconds(model: nn.Module) -> float:
    predictor, picture = image_predictor(model), np.zeros((96, 96, 3), np.uint8)
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    while not seconds or time.perf_counter() < end:
        started = time.perf_counter()
        predictor.set_image(picture)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * statistics.median(seconds[1:] or seconds), 2)


def _findings(states: list[TargetState]) -> list[Finding]:
    found = [finding for finding in (_kernels(states), _torchvision()) if finding is not None]
    absent: dict[str, list[str]] = {}
    for package, (extra, task) in EXTRAS.items():
        if importlib.util.find_spec(package) is None:
            absent.setdefault(extra, []).append(f"{CALLED.get(package, package)} ({task})")
    found += [
        Finding(f"not installed: {', '.join(packages)}", f'pip install "qsam2_ao[{extra}]"')
        for extra, packages in absent.items()
    ]
    return found


def _kernels(states: list[TargetState]) -> Finding | None:
    for state in states:
        if state.name == "int8" and state.reason is not None:
            return Finding(
                f"no int8 kernels on {state.device}: {state.reason}",
                "models run all the same, on oneDNN's int8 products, which are slower"
                if auto_target(state.device)[0] == "onednn"
                else "models run all the same, in float; for speed without them see qsam2 export",
            )
    return None


def _torchvision() -> Finding | None:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision is not installed; SAM2's predictors import it", "pip install torchvision")
    if not operators_missing():
        return None
    return Finding(
        f"torchvision {importlib.metadata.version('torchvision')} has no compiled operators that load into torch "
        f"{torch.__version__}; qsam2_ao stands in for the one that SAM2 needs",
        "nothing needs doing; for torchvision's own operators install the one that was built for this torch",
    )
