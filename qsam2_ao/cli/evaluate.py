"""``qsam2 evaluate``: J&F and mIoU of a model on the embedded test split or on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import QConfigError
from ..spelling import counted
from .common import EMBEDDED, Checkpoint, Device, Json, MaxPixels, ModelName, Shard, Target, console, print_json

if TYPE_CHECKING:
    from ..workflow.evaluate import Evaluation

VIDEO_PROMPTS = "mask, box, click, 3-click, 5-click"
IMAGE_PROMPTS = "box, click, 3-click, 5-click"


def evaluate(
    model: ModelName,
    data: Annotated[
        str, typer.Option(metavar="FOLDER", help="A data set's folder, or 'embedded' for the procedural test split.")
    ] = EMBEDDED,
    data_format: Annotated[
        str, typer.Option("--format", metavar="NAME", help="The data set's layout; auto finds it.")
    ] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Such as val (the default, where there are splits); all for every video.",
            show_default=False,
        ),
    ] = None,
    sequences: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[,NAME]", help="Only these videos. Repeatable.", show_default=False),
    ] = None,
    videos: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many videos (embedded: 64).", show_default=False)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=2, help="Frames of each embedded video; 16 by default.", show_default=False)
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="official|deployed",
            help="official: as SAM2's vos_inference.py, without postprocessing (the default on data sets). deployed: "
            "with the model's own settings (the default on embedded videos).",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="davis|sav",
            help="Count as davis2017-evaluation or as SA-V's sav_evaluator; by default as the data set's own.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT",
            help=f"On each object's first frame of a video: {VIDEO_PROMPTS}; mask by default.",
            show_default=False,
        ),
    ] = None,
    image_prompt: Annotated[
        list[str], typer.Option(metavar="PROMPT", help=f"For mIoU of images: {IMAGE_PROMPTS}. Repeatable.")
    ] = ["box"],  # noqa: B006 - it is not changed, and typer shows it
    all_frames: Annotated[
        bool,
        typer.Option("--all-frames", help="Score the first and the last annotated frame too, which DAVIS leaves out."),
    ] = False,
    ignore: Annotated[
        int | None,
        typer.Option(
            metavar="LABEL",
            min=1,
            max=255,
            help="Leave pixels of this label out of the scores, such as 255 (void).",
            show_default=False,
        ),
    ] = None,
    per_object: Annotated[bool, typer.Option("--per-object", help="Report every object's scores.")] = False,
    save_masks: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write the masks as benchmarks' servers take them: palette PNGs, or a folder for each object (SA-V).",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Keep a result for each video, to go on after an interruption, and write report.json.",
            show_default=False,
        ),
    ] = None,
    shard: Shard = None,
    autocast: Annotated[
        str | None,
        typer.Option(
            metavar="none|bf16",
            help="Run in bfloat16 where it is safe: by default on CUDA with the official protocol, as SAM2 does.",
            show_default=False,
        ),
    ] = None,
    max_pixels: MaxPixels = None,
    checkpoint: Checkpoint = None,
    device: Device = "cpu",
    target: Target = "auto",
    as_json: Json = False,
) -> None:
    """Measure J&F on videos, given each first frame's masks, and mIoU on images, given boxes.

    Interrupted, it goes on where it was with the same --output. Started by torchrun or srun, each process takes its
    share of the videos.

    Example: [bold]qsam2 evaluate tiny-w4a8.safetensors --data DAVIS/ --split val --save-masks masks/ --json[/bold]
    """
    from ..workflow import evaluate as work
    from ..workflow.labelled import labelled_videos
    from ..workflow.shares import share_of

    if frames is not None and data != EMBEDDED:
        raise QConfigError(f"--frames is for embedded videos; those of {data} are tracked whole")
    names = None if not sequences else [name for text in sequences for name in text.split(",") if name]
    share = share_of(shard)
    opened = labelled_videos(data, format=data_format, split=split, sequences=names, count=videos, frames=frames)
    if opened.pictures:
        for option, given in (("--prompt", prompt), ("--metric", metric), ("--all-frames", all_frames)):
            if given:
                raise QConfigError(f"{option} is for J&F of videos, and {data} holds pictures: leave it out")
    chosen = protocol or opened.protocol
    fast = device.partition(":")[0] == "cuda" and chosen == "official"
    settings = work.EvaluationSettings(
        protocol=chosen,  # type: ignore[arg-type]  # checked where it is used, as the others
        metric=metric or opened.metric,  # type: ignore[arg-type]
        prompt=prompt or "mask",  # type: ignore[arg-type]
        image_prompts=tuple(image_prompt),  # type: ignore[arg-type]
        skip_first_and_last=not all_frames,
        ignore=ignore,
        autocast=autocast or ("bf16" if fast else "none"),  # type: ignore[arg-type]
    )
    done = work.evaluate(
        model,
        opened,
        settings,
        output=output,
        save_masks=save_masks,
        checkpoint=checkpoint,
        device=device,
        target=target,
        share=share,
        per_object=per_object,
    )
    if done is None:
        return
    if as_json:
        print_json(done.to_dict(per_object=per_object))
        return
    _show(model, data, done, per_object)
    if output is not None:
        typer.echo(f"wrote {output / 'report.json'}")


def _show(model: str, data: str, done: Evaluation, per_object: bool) -> None:
    from ..reporting.tables import ModelRow, comparison_table

    report = done.to_dict()
    scores = {name: report[name] for name in ("j", "f", "jf", "miou")}
    settings = done.settings
    split = f", split {report['split']}" if report["split"] else ""
    console().print(
        comparison_table(
            [ModelRow(model, None, None, **scores)],
            f"{counted(report['videos'], 'picture' if done.pictures else 'video')} of {data}{split}, in percent",
        )
    )
    asked = ", ".join(settings.image_prompts) if done.pictures else settings.prompt
    typer.echo(f"protocol {settings.protocol}, metric {settings.metric}, prompt {asked}")
    if len(settings.image_prompts) > 1:
        for name, value in report["miou_by_prompt"].items():
            typer.echo(f"mIoU with {name}: {'-' if value is None else f'{value:.1f}'}")
    if per_object and done.scores is not None:
        for score in done.scores.objects:
            typer.echo(f"{score.sequence} {score.object_id}: J&F {score.jf:.1f}, J {score.j:.1f}, F {score.f:.1f}")
    if left := report["not_scored"]:
        typer.echo(
            f"{counted(len(left), 'video')} not scored, without an annotation that counts: {', '.join(left[:8])}"
            + (", ..." if len(left) > 8 else "")
        )
    if report["masks"]:
        typer.echo(f"wrote {report['masks']}")
