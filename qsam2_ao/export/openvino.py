"""Deployed models as OpenVINO files, made from the ONNX ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from sam2.modeling.sam2_base import SAM2Base

from ..files import atomic_write
from ..optional import needed
from .settings import ExportSettings
from .to_onnx import export_onnx


def export_openvino(model: SAM2Base, folder: str | os.PathLike[str], *, progress: bool = True) -> list[Path]:
    """Write the parts that :func:`export_onnx` writes as OpenVINO's ``.xml`` and ``.bin``.

    OpenVINO turns the quantize-dequantize pairs into its own int8 layers.

    Args:
        model: From ``load_qsam2`` with ``target="packed"``.
        folder: Where ``image_encoder.xml`` and so on go.
        progress: Whether to show a bar.

    Returns:
        The ``.xml`` files.

    Raises:
        QSAM2Error: The packages are missing, or a file cannot be written.
        UnsupportedLayerError: As for :func:`export_onnx`.

    Example:
        >>> export_openvino(load_qsam2("tiny-w4a8.safetensors"), "tiny-w4a8-openvino")  # doctest: +SKIP
    """
    needed("openvino")
    with tempfile.TemporaryDirectory() as work:
        files = openvino_from_onnx(export_onnx(model, work, progress=progress), folder)
    ExportSettings.of(model, "openvino").save(Path(folder))
    return files


def openvino_from_onnx(sources: Iterable[Path], folder: str | os.PathLike[str]) -> list[Path]:
    """Convert ONNX files to OpenVINO's.

    Args:
        sources: What :func:`export_onnx` wrote.
        folder: Where the ``.xml`` and ``.bin`` of each go.

    Returns:
        The ``.xml`` files.

    Raises:
        QSAM2Error: The package is missing, or a file cannot be written.
    """
    ov = needed("openvino")
    files = []
    with tempfile.TemporaryDirectory() as work:
        for source in sources:
            whole = Path(work) / f"{source.stem}.xml"
            ov.save_model(ov.convert_model(source), whole, compress_to_fp16=False)
            path = Path(folder) / whole.name
            ExportSettings.remove(Path(folder))
            # The .bin is renamed first: where the .xml is, both are, of one export.
            with atomic_write(path) as xml, atomic_write(path.with_suffix(".bin")) as weights:
                xml.write_bytes(whole.read_bytes())
                weights.write_bytes(whole.with_suffix(".bin").read_bytes())
                path.unlink(missing_ok=True)
            files.append(path)
    return files
