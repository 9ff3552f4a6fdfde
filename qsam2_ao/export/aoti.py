"""Deployed models compiled ahead of time: AOTInductor packages that run without the Python model."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path

import torch
from sam2.modeling.sam2_base import SAM2Base

from ..deploy.compiled import refuse_opaque_weights
from ..errors import QSAM2Error
from ..files import atomic_write
from ..predictors import check_float32
from ..progress import tqdm
from .parts import ExportPart, check_on_cpu, export_parts
from .rope import use_real_rope
from .settings import SIZE_KEY, ExportSettings


def export_aoti(model: SAM2Base, folder: str | os.PathLike[str], *, progress: bool = True) -> list[Path]:
    """Compile the networks of :mod:`.parts` into packages for CPUs like this one.

    :class:`~qsam2_ao.export.runner.ExportedSAM2` runs them; so does ``torch._inductor.aoti_load_package``, once
    the int8 kernels are loaded if the model was lowered to them. The numbers of clicks, memory frames and object
    pointers are free; the image has the model's size.

    Args:
        model: From ``load_qsam2`` on the CPU, with any target but "onednn", in eval mode; not modified.
            Packed weights stay packed.
        folder: Where ``image_encoder.pt2`` and so on go; each is written whole or not at all.
        progress: Whether to show a bar.

    Returns:
        The files.

    Raises:
        UnsupportedLayerError: The model is not on the CPU, was lowered to "onednn", or has a memory that is not
            configured as in the official models.
        QSAM2Error: There is no C++ compiler, or it fails, or a file cannot be written, or the model was cast to another
            dtype.

    Example:
        >>> export_aoti(load_qsam2("tiny-w4a8.safetensors", target="auto"), "tiny-w4a8-aoti")  # doctest: +SKIP
    """
    check_on_cpu(model, "packages are compiled for the CPU")
    check_float32(model)
    refuse_opaque_weights(model, "packaged")
    model = copy.deepcopy(model).eval()
    use_real_rope(model)
    files, kernels = [], False
    for part in tqdm(export_parts(model), desc="compiling", unit="file", disable=not progress):
        path = Path(folder) / f"{part.name}.pt2"
        program = _traced(part)
        kernels |= any(getattr(node.target, "namespace", "") == "qsam2" for node in program.graph.nodes)
        with tempfile.TemporaryDirectory(prefix="qsam2-aoti-") as build:
            package = Path(build) / path.name
            _compile(part.name, program, package, model.image_size)
            ExportSettings.remove(Path(folder))
            with atomic_write(path) as temporary:
                shutil.copyfile(package, temporary)
        files.append(path)
    ExportSettings.of(model, "aoti", kernels).save(Path(folder))
    return files


def _compile(name: str, program: torch.export.ExportedProgram, package: Path, image_size: int) -> None:
    """The compiler's errors are told as its own, not as those of the place that the file goes to."""
    from torch._inductor.exc import CppCompileError, InductorError  # a second, which running exports must not wait for

    # settings.json may be another export's: what the network was compiled for stands inside it, too.
    configs = {"aot_inductor.metadata": {SIZE_KEY: str(image_size)}}
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=configs)
    except (InductorError, CppCompileError, OSError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        said = next((line for line in lines if "error: " in line), lines[0])
        raise QSAM2Error(
            f"cannot compile {name}: {said.strip()}; it takes a C++ compiler (g++, or what CXX names) and space in "
            f"{tempfile.gettempdir()}"
        ) from error


def _traced(part: ExportPart) -> torch.export.ExportedProgram:
    dynamic = tuple(dict.fromkeys(part.dynamic.get(name, {}), torch.export.Dim.DYNAMIC) for name in part.inputs)
    with torch.no_grad():
        return torch.export.export(part.module.eval(), tuple(part.inputs.values()), dynamic_shapes=dynamic)
