"""What ``qsam2 train`` does: one process of a training, all those of one machine, or a job for SLURM."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...compat.rebind import rebound
from ...errors import QConfigError, QSAM2Error
from ...files import atomic_write
from ...optional import needed
from ...ranks import Place, free_port, place_from
from .compose import own_cause, register_resolvers


def train(config: DictConfig, name: str) -> None:
    """Train as a config says. Run again, it goes on from the last epoch that was finished.

    In a process that torchrun or srun started, this is one rank. Else ``launcher.gpus_per_node`` processes are started
    here, or, with ``submitit.use_cluster=true``, a job of ``launcher.num_nodes`` machines is handed to SLURM.

    Args:
        config: From :func:`~qsam2_ao.training.official.compose.compose_training`.
        name: What the config is called.

    Raises:
        QSAM2Error: The config cannot be used here, or a step failed; the message says which setting, file or layer.
    """
    for package in ("fvcore", "pandas", "pycocotools"):  # said before anything is calibrated
        needed(package)
    place = place_from(os.environ)
    cluster = place is None and bool(OmegaConf.select(config, "submitit.use_cluster"))
    processes = 1 if cluster or place is not None else _processes(config)
    _check_data(OmegaConf.to_container(config.trainer.get("data") or OmegaConf.create(), resolve=True), "trainer.data")
    if cluster:
        _submit(config, name)
        return
    if place is None or place.rank == 0:
        _write_config(config)
        _drop_halves(config)
    if processes > 1:
        _start_here(config, processes)
    else:
        run_rank(config, place or Place.alone())


def run_rank(config: DictConfig, place: Place) -> None:
    """Be one process of a training.

    Args:
        config: As for :func:`train`.
        place: Which one.

    Raises:
        QSAM2Error: As :func:`train`.
    """
    _check_gpus(config, place.local_rank + 1)
    with place.in_environment():
        try:
            instantiate(config.trainer, _recursive_=False).run()
            dist.barrier()
        except InstantiationException as error:
            raise own_cause(error) or error from error
        finally:
            # Of several ranks, one that failed must not wait for the others: its process ends.
            if dist.is_initialized() and (place.world_size == 1 or sys.exc_info()[0] is None):
                dist.destroy_process_group()


def _start_here(config: DictConfig, processes: int) -> None:
    """Start the processes of one machine and wait for them; none is left behind."""
    arguments = (OmegaConf.to_container(config), processes, free_port())
    started = mp.start_processes(_spawned, arguments, nprocs=processes, join=False, start_method="spawn")
    try:
        while not started.join():
            pass
    except mp.ProcessRaisedException as error:
        last = str(error).strip().split("\n")[-1]
        if last.startswith("qsam2_ao.errors."):
            raise QSAM2Error(last.partition(": ")[2]) from error
        raise
    finally:
        for process in started.processes:
            if process.is_alive():
                process.terminate()


def _spawned(rank: int, config: dict, processes: int, port: int) -> None:
    register_resolvers()
    run_rank(OmegaConf.create(config), Place(rank, rank, processes, "localhost", port))


def _processes(config: DictConfig) -> int:
    """How many processes to start on this machine."""
    if config.launcher.num_nodes != 1:
        raise QConfigError(
            f"launcher.num_nodes is {config.launcher.num_nodes}, but this is one process on one machine: start it by "
            "torchrun or srun on each, or set submitit.use_cluster=true"
        )
    processes = int(config.launcher.gpus_per_node)
    _check_gpus(config, processes)
    return processes


def _check_gpus(config: DictConfig, wanted: int) -> None:
    gpus = torch.cuda.device_count()
    if config.trainer.get("accelerator", "cuda") != "cuda" or wanted <= gpus:
        return
    raise QConfigError(
        f"{wanted} processes on this machine want a GPU each, and there are {gpus} GPUs here: set "
        f"launcher.gpus_per_node={gpus}, or start as many; under SLURM give GPUs by --gpus-per-node, not by task"
        if gpus
        else "there is no GPU here: set trainer.accelerator=cpu trainer.distributed.backend=gloo "
        "trainer.optim.amp.enabled=false launcher.gpus_per_node=1, or train elsewhere"
    )


def _check_data(node: Any, name: str) -> None:
    """Refuse data sets that are not there: SAM2's trainer looks for them after the calibration, or in this folder."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check_data(item, f"{name}[{index}]")
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ("img_folder", "gt_folder") and not (isinstance(value, str) and Path(value).is_dir()):
            raise QConfigError(f"{name}.{key} is {value!r}, which is no folder: set dataset.{key} to the data's")
        if key == "file_list_txt" and value is not None and not Path(value).is_file():
            raise QConfigError(f"{name}.{key} is {value!r}, which is no file: set dataset.{key} to a list of videos")
        _check_data(value, f"{name}.{key}")


def _drop_halves(config: DictConfig) -> None:
    """Remove what processes that were killed while they wrote a checkpoint have left."""
    folder = OmegaConf.select(config, "trainer.checkpoint.save_dir")
    if folder is not None:
        for half in Path(folder).glob(".*.tmp.pt"):
            half.unlink(missing_ok=True)


def _write_config(config: DictConfig) -> None:
    """Keep the config in the experiment's folder, as SAM2's launcher does."""
    folder = Path(config.launcher.experiment_log_dir)
    for file, resolve in (("config.yaml", False), ("config_resolved.yaml", True)):
        with atomic_write(folder / file) as temporary:
            temporary.write_text(OmegaConf.to_yaml(config, resolve=resolve))


def _submit(config: DictConfig, name: str) -> None:
    """Hand the training to SLURM by SAM2's own launcher."""
    if shutil.which("sbatch") is None:  # submitit would train here, in the background
        raise QConfigError("submitit.use_cluster is true, and there is no sbatch here: start it where SLURM is")
    needed("submitit")
    from training.train import main

    options = ("use_cluster", "partition", "account", "qos", "num_gpus", "num_nodes")
    rebound(main, compose=lambda config_name: config)(Namespace(config=name, **dict.fromkeys(options)))
