"""``qsam2 inspect``: what is in a packed file, or in a float model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.markup import escape

from ..errors import QConfigError
from .common import Checkpoint, Json, ModelName, console, print_json


def inspect(
    model: ModelName,
    checkpoint: Checkpoint = None,
    time: Annotated[bool, typer.Option("--time", help="Time each layer of a packed file as TARGET runs it.")] = False,
    target: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="With --time: how the file runs; auto by default.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is in a packed file: its recipe, sizes, and every layer's bits.

    With --time, layers that are slower here than in float are flagged.

    Example: [bold]qsam2 inspect tiny-w4a8.safetensors --json[/bold]
    """
    from ..reporting.size import human_bytes
    from ..workflow.inspect import inspect_model

    if target is not None and not time:
        raise QConfigError("--target is for --time: without it nothing runs, and the file is shown as it is")
    facts = inspect_model(model, checkpoint, time=time, target=target or "auto")
    if as_json:
        print_json(facts.to_dict())
        return
    out, size = console(), facts.size
    out.print(f"[bold]{escape(model)}[/bold]: {facts.class_name}, {facts.image_size} pixels", highlight=False)
    if facts.info is not None:
        out.print(f"recipe {facts.info.get('qconfig')}, written by " + _versions(facts.info), highlight=False)
    if facts.file_bytes is not None:
        out.print(f"file {human_bytes(facts.file_bytes)}", highlight=False)
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
    out.print(facts.coverage.table())


def _versions(info: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()) or "unknown versions"
