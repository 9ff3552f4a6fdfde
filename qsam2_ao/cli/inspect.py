"""``qsam2 inspect``: what is in a packed file, or in a float model, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import QSAM2Error
from .common import Checkpoint, Json, ModelName, Target, console, load_model, print_json


def inspect(
    model: ModelName,
    checkpoint: Checkpoint = None,
    time: Annotated[bool, typer.Option("--time", help="Time each layer of a packed file as TARGET runs it.")] = False,
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Show what is in a packed file: its recipe, sizes, and every layer's bits.

    With --time, layers that are slower here than in float are flagged.

    Example: [bold]qsam2 inspect tiny-w4a8.safetensors --json[/bold]
    """
    from ..checkpoint import read_header
    from ..reporting.coverage import coverage_report
    from ..reporting.size import file_size, human_bytes, model_size
    from ..reporting.speed import layer_times
    from ..stage import stage_of

    loaded = load_model(model, checkpoint)
    packed = bool(stage_of(loaded).layers)
    file = Path(model) if packed else checkpoint
    size = model_size(loaded)
    coverage = coverage_report(loaded)
    if time:
        if not packed:
            raise QSAM2Error(f"--time is for packed files, and {model} is a float model")
        lowered = load_model(model, target=target)
        coverage = coverage_report(lowered, layer_times(lowered))
    facts: dict[str, Any] = {
        "model": model,
        "class": f"{type(loaded).__module__}.{type(loaded).__qualname__}",
        "image_size": loaded.image_size,
        "file_bytes": None if file is None else file_size(file),
        "info": read_header(model).info if packed else None,
        "size": size.to_dict(),
        "coverage": coverage.to_dict(),
    }
    if as_json:
        print_json(facts)
        return
    out = console()
    out.print(f"[bold]{model}[/bold]: {facts['class']}, {facts['image_size']} pixels", highlight=False)
    if packed:
        info = facts["info"]
        out.print(f"recipe {info.get('qconfig')}, written by " + _versions(info), highlight=False)
    if facts["file_bytes"] is not None:
        out.print(f"file {human_bytes(facts['file_bytes'])}", highlight=False)
    out.print(
        f"{size.values:,} values in {human_bytes(size.actual_bytes)}; in bfloat16 "
        f"{human_bytes(size.bfloat16_bytes)} ({size.compression:.1f}x), "
        f"in float32 {human_bytes(size.float32_bytes)}",
        highlight=False,
    )
    if size.bits_per_packed_value is not None:
        out.print(
            f"{size.packed_values:,} of them packed, in {size.bits_per_packed_value:.2f} bits each with their scales",
            highlight=False,
        )
    out.print(coverage.table())


def _versions(info: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()) or "unknown versions"
