"""Which of a training's processes this is: by torchrun's environment variables, or SLURM's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ...errors import QSAM2Error
from ...optional import needed

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
