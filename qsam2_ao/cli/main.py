"""``qsam2``: the application, and how it ends: exit codes, errors in one line on standard error."""

from __future__ import annotations

import importlib.metadata
import logging
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..errors import QSAM2Error
from ..openmp import wait_briefly
from .benchmark import app as benchmark
from .compare import compare
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .finetune import finetune
from .inspect import inspect
from .quantize import quantize
from .report import report
from .segment import segment
from .sensitivity import sensitivity
from .track import track
from .train import convert, train
from .vos_inference import vos_inference
from .web import web

BAD_INPUT, INTERRUPTED = 2, 130
_RESUMABLE = ("demo", "quantize", "finetune", "sensitivity", "benchmark")
_WITH_OUTPUT = ("evaluate",)


class _Application(TyperGroup):
    """Turns the expected ways of failing into a message and an exit code; the rest is a bug and shows."""

    def invoke(self, ctx: Any) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except QSAM2Error as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(BAD_INPUT) from error
        except KeyboardInterrupt as interrupt:
            hint = str(interrupt) or (
                "run the same command again to go on from the last finished step"
                if ctx.invoked_subcommand in _RESUMABLE
                else "run the same command again to go on from the last finished epoch"
                if ctx.invoked_subcommand == "train"
                else "with --output, the same command goes on after the last finished video"
                if ctx.invoked_subcommand in _WITH_OUTPUT
                else "no file was left half written"
            )
            typer.echo(f"\ninterrupted; {hint}", err=True)
            raise typer.Exit(INTERRUPTED) from interrupt


app = typer.Typer(
    name="qsam2",
    cls=_Application,
    help="Quantize Segment Anything Model 2 to 2-8 bits, and use the result on images and videos.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qsam2 {importlib.metadata.version('qsam2_ao')}")
        raise typer.Exit


@app.callback()
def _settings(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s", level=logging.WARNING)


for _command in (
    demo,
    quantize,
    finetune,
    train,
    convert,
    sensitivity,
    evaluate,
    segment,
    track,
    compare,
    report,
    web,
    inspect,
    export,
    doctor,
):
    app.command()(_command)
app.command("vos-inference", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(vos_inference)
app.add_typer(benchmark, name="benchmark")


def main() -> None:
    """Run the command line; the entry point ``qsam2``."""
    if sys.argv[1:2] != ["benchmark"]:  # which times what torch does by itself
        wait_briefly()
    for name in ("SIGTERM", "SIGUSR1"):  # what schedulers send before they take a machine back
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    app()


if __name__ == "__main__":
    main()
