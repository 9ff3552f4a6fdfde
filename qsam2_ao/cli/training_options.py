"""The options of the commands that train, ``qsam2 quantize`` and ``qsam2 finetune``, and the record they fill."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import QConfigError

if TYPE_CHECKING:
    from ..training.settings import TrainingSettings

_PANEL = "Training"
#: Options of a training that are no settings of it.
_NO_SETTINGS = ("train_data", "val_data", "log_dir")


def _option(
    help: str, *names: str, min: float | None = None, max: float | None = None, metavar: str | None = None
) -> typer.models.OptionInfo:
    return typer.Option(
        *names, help=help, min=min, max=max, metavar=metavar, show_default=False, rich_help_panel=_PANEL
    )


TrainData: TypeAlias = Annotated[
    str | None,
    _option("A data set, several as A:0.7,B:0.3, or 'embedded' for clips.", "--train-data", metavar="DATA"),
]
ValData: TypeAlias = Annotated[
    str | None,
    _option(
        "Data sets to judge by, or 'embedded'; by default every tenth video is set aside.", "--val-data", metavar="DATA"
    ),
]
ValidateEvery: TypeAlias = Annotated[
    int | None,
    _option("Steps between two judgements; the best weights are kept. By default a fifth of --steps.", min=1),
]
Rate: TypeAlias = Annotated[
    float | None,
    _option(
        "Peak learning rate of weights; by default 1e-3 where most have 2 bits, 1e-4 with more, 1e-5 in finetune.",
        "--lr",
        min=0,
    ),
]
RangeRate: TypeAlias = Annotated[
    float | None,
    _option("Peak learning rate of clipping ranges; by default ten times --lr.", "--range-lr", min=0),
]
BatchSize: TypeAlias = Annotated[
    int | None, _option("Clips of a step, over all processes and parts; by default 1 each (4 procedural ones).", min=1)
]
Accumulate: TypeAlias = Annotated[
    int | None, _option("Parts of a step that go through the model one after the other; 1 by default.", min=1)
]
BF16: TypeAlias = Annotated[bool, typer.Option("--bf16", help="Train under bfloat16 autocast.", rich_help_panel=_PANEL)]
Frames: TypeAlias = Annotated[int | None, _option("Frames of a clip; 4 by default.", min=1)]
Objects: TypeAlias = Annotated[int | None, _option("Objects of a clip, at most; 3 by default.", min=1)]
Freeze: TypeAlias = Annotated[
    list[str] | None, _option("A region to leave as it is, such as image_encoder. Repeatable.", metavar="REGION")
]
EMA: TypeAlias = Annotated[
    float | None,
    _option(
        "Decay of the averaged weights, which are what is kept; by default it follows from --steps.",
        "--ema",
        min=0,
        max=1,
    ),
]
Augment: TypeAlias = Annotated[
    bool, typer.Option("--augment", help="Mirror, crop and recolour the clips.", rich_help_panel=_PANEL)
]
Workers: TypeAlias = Annotated[int | None, _option("Processes that read the data; 0 reads in this one.", min=0)]
LogDir: TypeAlias = Annotated[
    Path | None, _option("Write metrics.jsonl, and tensorboard's files, there.", "--log-dir", metavar="FOLDER")
]


def training_settings(context: typer.Context) -> TrainingSettings | None:
    """The record of the training that a command was asked for.

    Args:
        context: The command's. Its options that have the names of the record's fields are those fields.

    Returns:
        None with ``--steps 0``.

    Raises:
        QConfigError: A setting cannot be, or is one of a training that there is none of.
    """
    from ..training.settings import TrainingSettings

    given = {name: value for name, value in context.params.items() if value not in (None, (), [])}
    settings = {field.name: given[field.name] for field in fields(TrainingSettings) if field.name in given}
    if not settings["steps"]:
        del settings["steps"]
        for name in (*settings, *_NO_SETTINGS):
            if given.get(name, False) is not False:
                raise QConfigError(f"--{name.replace('_', '-')} is for training: give --steps, or leave it out")
        return None
    return TrainingSettings(**{**settings, "freeze": tuple(settings.get("freeze", ()))})
