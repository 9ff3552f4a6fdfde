"""How the commands that train the embedded models end."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..errors import QSAM2Error


def exit_code(training: Callable[[], object]) -> int:
    """Run a training that continues where an earlier one stopped, and say in one line what ended it.

    Returns:
        0, or 1 after an error, or 130 after Ctrl-C.

    Example:
        >>> exit_code(lambda: None)
        0
    """
    try:
        training()
    except QSAM2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    return 0
