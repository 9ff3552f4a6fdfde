"""What a long step tells its user that is not its result."""

from __future__ import annotations

import sys


def note(message: str) -> None:
    """Say it on standard error, where progress bars are too."""
    print(message, file=sys.stderr, flush=True)
