"""``qsam2 doctor``: this machine, what is missing on it, and how fast each target is."""

from __future__ import annotations

from typing import Annotated

import typer

from .common import Json, console, print_json


def doctor(
    timing: Annotated[bool, typer.Option(help="Time the embedded model on every target, a second each.")] = True,
    as_json: Json = False,
) -> None:
    """Look at this machine: processor, packages, kernels and GPU; what is missing, and the command that brings it.

    Put its output into a bug report.

    Example: [bold]qsam2 doctor --json[/bold]
    """
    from rich.table import Table

    from ..workflow.doctor import diagnose

    found = diagnose(timing=timing)
    if as_json:
        print_json(found.to_dict())
        return
    out = console()
    facts = Table(show_header=False, box=None)
    for name, value in found.environment.items():
        facts.add_row(name, value)
    facts.add_row("CPU features", ", ".join(found.cpu_features) or "unknown")
    if found.memory_gib is not None:
        facts.add_row("memory", f"{found.memory_gib} GiB")
    for gpu in found.gpus or ("none",):
        facts.add_row("GPU", gpu)
    library = found.kernel_library
    facts.add_row("int8 kernels", f"{'in' if found.kernels_built else 'not in'} {library}" if library else "none here")
    facts.add_row("target auto", found.auto)
    out.print(facts, highlight=False)
    targets = Table(title="The embedded model in W4A8, one image" if timing else "Targets")
    for column in ("target", "device", "ms" if timing else "runs here", "why not"):
        targets.add_column(column)
    for state in found.targets:
        runs = "yes" if state.reason is None else "no"
        value = runs if not timing else "" if state.milliseconds is None else f"{state.milliseconds:.2f}"
        targets.add_row(state.name, state.device, value, state.reason or "")
    out.print(targets)
    for finding in found.findings:
        out.print(f"• {finding.problem}\n  → {finding.remedy}", highlight=False, markup=False)
    if not found.findings:
        out.print("[green]Nothing is missing.[/green]")
