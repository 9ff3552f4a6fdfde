"""Progress bars on a terminal; lines, one every few seconds, where a file, a pipe or CI keeps what is written."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm as bars

LINE_SECONDS = 15.0
"""Between two lines about the same work; the last one comes in any case."""
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_COUNT = "{desc}: {n_fmt} [{elapsed}, {rate_fmt}{postfix}]"


def in_lines(stream: TextIO | None = None) -> bool:
    """Whether progress is told in lines: ``NO_COLOR`` or ``CI`` is set, the terminal is dumb, or there is none.

    Args:
        stream: Where it goes; by default standard error. A notebook has no terminal, but shows bars.
    """
    stream = stream or sys.stderr
    if os.environ.get("NO_COLOR") or os.environ.get("CI") or os.environ.get("TERM") == "dumb":
        return True
    return "ipykernel" not in sys.modules and not stream.isatty()


class ProgressBar(bars):
    """tqdm's bar where someone watches, and lines elsewhere: no carriage returns, no bar, and few of them.

    Args:
        *args: As tqdm takes them.
        **kwargs: Likewise.

    Example:
        >>> for image in tqdm(images, desc="observing", unit="image"): ...  # doctest: +SKIP
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._lines = in_lines(kwargs.get("file"))
        self._shown: tuple[float, float] = (time.monotonic(), 0)
        if self._lines:
            kwargs.update(mininterval=1.0, miniters=1, dynamic_ncols=False, ncols=None)
        super().__init__(*args, **kwargs)

    @property
    def _form(self) -> str:
        form = _COUNT if self.total is None else _LINE
        return form if self.desc else form.removeprefix("{desc}: ")

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Show the state; in lines, only when it is time for one."""
        if not self._lines:
            return super().display(msg, pos)
        now = time.monotonic()
        if now - self._shown[0] >= LINE_SECONDS and self.n > self._shown[1]:
            self._line(now)
        return True

    def _line(self, now: float) -> None:
        self._shown = now, self.n
        facts: dict[str, Any] = dict(self.format_dict)
        facts |= {"bar_format": self._form, "prefix": (self.desc or "").removesuffix(": ")}
        print(self.format_meter(**facts), file=self.fp, flush=True)

    def close(self) -> None:
        """End it; in lines, with one that says how far it came."""
        if not self._lines or self.disable:
            super().close()
            return
        self.disable = True
        self._decr_instances(self)  # type: ignore[attr-defined]
        if self.n > self._shown[1]:
            self._line(time.monotonic())


# To a type checker tqdm's own, which knows the type of what is iterated over.
if TYPE_CHECKING:
    tqdm = bars
else:
    tqdm = ProgressBar
