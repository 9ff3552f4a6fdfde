"""How long OpenMP's threads wait for each other awake: a setting that is read once, when torch is imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

#: Rounds of a thread's waiting loop, some microseconds, where libgomp's own default is 300,000, some milliseconds. On a
#: machine of two cores with four other busy processes SAM 2.1-T on the int8 kernels tracked 11 times slower than alone
#: with that, and 4 times with this. `qsam2 benchmark inference` measures it.
SPIN_COUNT = "300"

_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let threads that wait for others sleep soon, unless the user has set how they wait.

    Every operation on several threads ends when its last thread does. On a machine that does other things too, some
    threads have to wait until they get a core again, and the others, awake, keep it from them.

    It has no effect once torch is imported, nor on an OpenMP other than GCC's, which torch has on Linux.

    Args:
        environment: What is changed: that of this process, which those that it starts inherit.

    Example:
        >>> wait_briefly()
        >>> import torch
    """
    if not any(name in environment for name in _SETTINGS):
        environment["GOMP_SPINCOUNT"] = SPIN_COUNT
