"""Data-parallel processes (ranks): which one this is, joining the others, and what one does for all of them."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .devices import own_gpu, usable_device
from .errors import QSAM2Error
from .optional import needed
from .quantizers.statistics import on_this_rank_alone, world_size

T = TypeVar("T")
#: The first rank calibrates for as long as it takes; a rank that has died is torchrun's to notice.
_PATIENCE = timedelta(days=7)

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_SRUN = ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Place:
    """A process among those of a training.

    Attributes:
        rank: Its number.
        local_rank: Its number on its machine, which is that of its GPU.
        world_size: How many there are.
        address: The machine of rank 0.
        port: On which rank 0 listens there.
    """

    rank: int
    local_rank: int
    world_size: int
    address: str
    port: int

    @classmethod
    def alone(cls) -> Place:
        """The only process, with a free port."""
        return cls(0, 0, 1, "localhost", free_port())

    @contextmanager
    def in_environment(self) -> Iterator[None]:
        """Say it in the environment variables that torch.distributed and SAM2's trainer read, for the block."""
        values = (self.rank, self.local_rank, self.world_size, self.address, self.port)
        before = {name: os.environ.get(name) for name in _TORCHRUN}
        os.environ.update({name: str(value) for name, value in zip(_TORCHRUN, values, strict=True)})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def place_from(environment: Mapping[str, str]) -> Place | None:
    """This process's place, if something started it as one of several.

    Args:
        environment: ``os.environ``.

    Returns:
        What torchrun or srun say; None in a plain process, which includes a batch script outside of srun.

    Raises:
        QSAM2Error: Some of torchrun's variables are missing, or one is no number.

    Example:
        >>> place_from({}) is None
        True
    """
    given = [name for name in _TORCHRUN if name in environment]
    try:
        if "RANK" in given or "WORLD_SIZE" in given:
            if missing := [name for name in _TORCHRUN if name not in environment]:
                raise QSAM2Error(f"of torchrun's environment variables {', '.join(missing)} is not set; use torchrun")
            rank, local, size = (int(environment[name]) for name in _TORCHRUN[:3])
            return Place(rank, local, size, environment["MASTER_ADDR"], int(environment["MASTER_PORT"]))
        if all(name in environment for name in _SRUN):
            rank, local, size = (int(environment[name]) for name in _SRUN[1:])
            port = int(environment.get("MASTER_PORT", 10000 + int(environment.get("SLURM_JOB_ID", "0")) % 50000))
            return Place(rank, local, size, environment.get("MASTER_ADDR") or _first_host(environment), port)
    except ValueError as error:
        raise QSAM2Error(f"an environment variable of torchrun or SLURM holds no number: {error}") from error
    return None


def _first_host(environment: Mapping[str, str]) -> str:
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        return "localhost"
    needed("submitit")
    from submitit.slurm.slurm import _parse_node_list

    return _parse_node_list(nodes)[0]


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@contextmanager
def joined(place: Place | None, device: str) -> Iterator[str]:
    """Be one of several ranks inside the block, by NCCL on GPUs and by gloo on CPUs; alone nothing happens.

    Args:
        place: From :func:`place_from`.
        device: What the user chose.

    Yields:
        The device for this rank: of "cuda", its own GPU on its machine.

    Raises:
        QSAM2Error: All ranks were given one and the same GPU by its number, or there is none of this rank's number.

    Example:
        >>> with joined(place_from({}), "cpu") as device:
        ...     print(device, world_size())
        cpu 1
    """
    if place is None or place.world_size == 1:
        yield device
        return
    where = torch.device(device)
    if where.type == "cuda":
        if where.index is not None:
            raise QSAM2Error(f"--device {device} is one GPU for {place.world_size} processes; give --device cuda")
        device = own_gpu(place.local_rank)
        torch.cuda.set_device(usable_device(device))
    with place.in_environment():
        dist.init_process_group("cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo", timeout=_PATIENCE)
        try:
            yield device
            dist.barrier()
        finally:
            # A rank that failed must not wait for the others: its process ends.
            if sys.exc_info()[0] is None:
                dist.destroy_process_group()


def rank() -> int:
    """The number of this process among the ranks that take part; 0 where it is alone."""
    return dist.get_rank() if world_size() > 1 else 0


def from_first_rank(compute: Callable[[], T], what: str) -> T:
    """What the first rank computes, on every rank; the others wait.

    Args:
        compute: Called on the first rank, where nothing in it is a collective call. Its result can be pickled.
        what: What it does, for the error on the other ranks, such as "calibrate the model".

    Returns:
        Its result, or a copy.

    Raises:
        QSAM2Error: On the other ranks, that the first has failed. There its own error comes through.

    Example:
        >>> from_first_rank(lambda: 3, "count")
        3
    """
    if world_size() == 1:
        return compute()
    shared: list[Any] = [None, None]
    failure: BaseException | None = None
    if rank() == 0:
        try:
            with on_this_rank_alone():
                shared[0] = compute()
        except BaseException as error:  # the others must hear of it, whatever it is
            failure, shared = error, [None, f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(shared)
    if failure is not None:
        raise failure
    if shared[1] is not None:
        raise QSAM2Error(f"rank 0 could not {what}: {shared[1]}")
    result: T = shared[0]
    return result


def mean_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over the ranks, without its gradient; a collective call where there are several."""
    value = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(value)
        value /= world_size()
    return value


def bare(model: nn.Module) -> nn.Module:
    """The model inside of DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model
