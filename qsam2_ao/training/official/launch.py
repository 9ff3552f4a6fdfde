"""What ``qsam2 train`` does: one process of a training, all those of one machine, or a job for SLURM."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

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
    if place is None and OmegaConf.select(config, "submitit.use_cluster"):
        _submit(config, name)
        return
    if place is None or place.rank == 0:
        _write_config(config)
    if place is not None:
        run_rank(config, place)
        return
    processes = _processes(config)
    if processes == 1:
        run_rank(config, Place.alone())
        return
    _start_here(config, processes)


def run_rank(config: DictConfig, place: Place) -> None:
    """Be one process of a training.

    Args:
        config: As for :func:`train`.
        place: Which one.

    Raises:
        QSAM2Error: As :func:`train`.
    """
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
    processes, gpus = int(config.launcher.gpus_per_node), torch.cuda.device_count()
    if config.trainer.get("accelerator", "cuda") == "cuda" and processes > gpus:
        raise QConfigError(
            f"launcher.gpus_per_node is {processes}, but there are {gpus} GPUs here; set launcher.gpus_per_node={gpus}"
            if gpus
            else "there is no GPU here: set trainer.accelerator=cpu trainer.distributed.backend=gloo "
            "trainer.optim.amp.enabled=false launcher.gpus_per_node=1, or train elsewhere"
        )
    return processes


def _write_config(config: DictConfig) -> None:
    """Keep the config in the experiment's folder, as SAM2's launcher does."""
    folder = Path(config.launcher.experiment_log_dir)
    for file, resolve in (("config.yaml", False), ("config_resolved.yaml", True)):
        with atomic_write(folder / file) as temporary:
            temporary.write_text(OmegaConf.to_yaml(config, resolve=resolve))


def _submit(config: DictConfig, name: str) -> None:
    """Hand the training to SLURM by SAM2's own launcher."""
    needed("submitit")
    from training.train import main

    options = ("use_cluster", "partition", "account", "qos", "num_gpus", "num_nodes")
    rebound(main, compose=lambda config_name: config)(Namespace(config=name, **dict.fromkeys(options)))
