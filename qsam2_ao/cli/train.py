"""``qsam2 train`` and ``qsam2 convert``: SAM2's own trainer, and what comes out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .common import Json, print_json

Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="configs/qsam2/sam2.1_hiera_t_w4a8.yaml, ..._t_w2a8, ..._b+_w4a8, ..._b+_w2a8, or a YAML file of yours.",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the config, as Hydra takes them.", show_default=False),
]


def train(config: Config, overrides: Overrides = None) -> None:
    """Train with fake-quantizers by SAM2's own trainer. Run again, it goes on from the last finished epoch.

    Start it as it is for the processes of one machine, by torchrun or srun for one rank, or with
    submitit.use_cluster=true for a SLURM job.

    Example: [bold]qsam2 train configs/qsam2/sam2.1_hiera_t_w4a8.yaml dataset.img_folder=MOSE/train/JPEGImages
    dataset.gt_folder=MOSE/train/Annotations launcher.gpus_per_node=1[/bold]
    """
    from ..training.official.compose import compose_training
    from ..training.official.launch import train as run

    run(compose_training(config, overrides or ()), config)


def convert(
    config: Config,
    checkpoint: Annotated[Path, typer.Option(metavar="FILE", help="The trainer's checkpoint.pt.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The packed .safetensors file.", show_default=False)
    ],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Pack a checkpoint of qsam2 train.

    Example: [bold]qsam2 convert configs/qsam2/sam2.1_hiera_t_w4a8.yaml
    --checkpoint sam2_logs/sam2.1_hiera_t_w4a8/checkpoints/checkpoint.pt -o tiny-w4a8.safetensors[/bold]
    """
    from ..reporting.size import file_size, human_bytes, model_size
    from ..stage import stage_of
    from ..training.official.compose import compose_training
    from ..training.official.packing import pack_checkpoint

    packed = pack_checkpoint(compose_training(config, overrides or ()), checkpoint, output)
    size, file_bytes = model_size(packed), file_size(output)
    if as_json:
        info = {key: value for key, value in (stage_of(packed).info or {}).items() if key != "vrc"}
        print_json({"file": str(output), "file_bytes": file_bytes, **info, "size": size.to_dict()})
        return
    typer.echo(
        f"wrote {output}: {human_bytes(file_bytes)}, {size.bfloat16_bytes / file_bytes:.1f} times smaller than "
        f"bfloat16 (qsam2 inspect {output} shows every layer)"
    )
