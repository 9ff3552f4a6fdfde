"""One process's share of work that several do side by side, told by --shard, torchrun or srun."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ..devices import own_gpu
from ..errors import QConfigError
from ..ranks import place_from
from ..reporting.notes import note
from ..spelling import counted

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Every so many-th item.

    Attributes:
        index: Which share, from 0.
        count: How many there are.
        together: Whether the others run at the same time, started by torchrun or srun.
        local: Then, the number of this process on its machine.
    """

    index: int = 0
    count: int = 1
    together: bool = False
    local: int = 0

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this share.

        Example:
            >>> Share(1, 3).of("abcdefg")
            ['b', 'e']
        """
        return list(items[self.index :: self.count])

    def device(self, name: str) -> str:
        """The device of this process: of "cuda", its own GPU (see :func:`~qsam2_ao.devices.own_gpu`).

        Example:
            >>> Share(4, 8, together=True, local=0).device("cuda")
            'cuda:0'
        """
        return own_gpu(self.local) if self.together and name == "cuda" else name

    def all_done(self, missing: Callable[[], Sequence[str]], what: str) -> bool:
        """Whether nothing is missing, once this share is done.

        The first of processes that run at the same time waits for the others; the launcher ends it if one of them
        fails.

        Args:
            missing: Names the items whose results are not there.
            what: What one of them is called, such as "video".

        Returns:
            Whether the report can be made by this process; else it was said what to do.
        """
        if self.together:
            if self.index:
                return False
            while missing():
                time.sleep(0.2)
            return True
        if left := missing():
            some = ", ".join(left[:4]) + (", ..." if len(left) > 4 else "")
            note(
                f"share {self.index} of {self.count} is done; of other shares still to come: "
                f"{counted(len(left), what)} ({some}); the last share to end, or the same command without "
                "--shard, reports"
            )
            return False
        return True


def share_of(shard: str | None) -> Share:
    """This process's share.

    Args:
        shard: "I/N" from the command line; I counts from 0 or from 1. None for what torchrun or srun say, or all.

    Raises:
        QConfigError: It is something else, or is given although torchrun or srun share the work.

    Example:
        >>> share_of("1/4")
        Share(index=1, count=4, together=False, local=0)
    """
    place = place_from(os.environ)
    together = place is not None and place.world_size > 1
    if shard is None:
        if place is None or not together:
            return Share()
        return Share(place.rank, place.world_size, together=True, local=place.local_rank)
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", shard)
    if match is None or not int(match[2]) or int(match[1]) > int(match[2]):
        raise QConfigError(f"--shard {shard}: give I/N, such as 0/4 to 3/4, or 1/4 to 4/4")
    if together:
        raise QConfigError("--shard is for processes that are started one by one; torchrun and srun deal by rank")
    # Counted from 1, the last one is N/N: the shares are the same, in another order.
    return Share(int(match[1]) % int(match[2]), int(match[2]))
