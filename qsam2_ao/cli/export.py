"""``qsam2 export``: a packed file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import QConfigError, QSAM2Error
from .common import Json, print_json


def export(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="A packed .safetensors file.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the files go.")],
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="aoti, onnx or openvino.")] = "onnx",
    as_json: Json = False,
) -> None:
    """Write the image encoder, mask decoder, memory attention and memory encoder for another runtime.

    aoti compiles packages for this machine's CPU. In onnx and openvino the learned ranges are quantize-dequantize
    pairs; they take the optional dependencies "export". [bold]qsam2 segment[/bold] and [bold]qsam2 track[/bold] run
    the folder.

    Example: [bold]qsam2 export tiny-w4a8.safetensors --format onnx -o tiny-w4a8-onnx[/bold]
    """
    from ..checkpoint import load_qsam2
    from ..deploy.targets import auto_target
    from ..export import export_aoti, export_onnx, export_openvino
    from ..files import check_output_folder
    from ..models.weights import holds_float_weights
    from ..reporting.size import human_bytes
    from ..workflow import EMBEDDED_NAMES
    from ..workflow.models import is_config

    # Packages are for this machine anyway; the other runtimes have int8 layers of their own.
    kernels = "int8" if auto_target()[0] == "int8" else "packed"
    formats = {"aoti": (export_aoti, kernels), "onnx": (export_onnx, "packed"), "openvino": (export_openvino, "packed")}
    if form not in formats:
        raise QConfigError(f"unknown format {form!r}; choose one of {', '.join(formats)}")
    check_output_folder(output)
    if str(model) in EMBEDDED_NAMES or is_config(str(model)) or holds_float_weights(model):
        raise QSAM2Error(f"{model} is a float model: quantize it (qsam2 quantize), and export the packed file")
    write, target = formats[form]
    files = [
        file for path in write(load_qsam2(model, target=target), output) for file in (path, path.with_suffix(".bin"))
    ]
    sizes = {str(file): file.stat().st_size for file in files if file.is_file()}
    if as_json:
        print_json(sizes)
        return
    for name, size in sizes.items():
        typer.echo(f"{name}: {human_bytes(size)}")
