"""Results that show themselves as tables: on a terminal by rich, in a notebook as HTML."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_WIDTH = 1000
"""Characters: wider than any table, which takes what it needs; a notebook scrolls what is wider than its page."""


class ShowsTable:
    """Of a class with ``table()``: ``rich.print`` shows the table, and so does the last line of a notebook's cell."""

    def table(self) -> Table:
        """The table."""
        raise NotImplementedError

    def __rich__(self) -> Table:
        return self.table()

    def _repr_html_(self) -> str:
        return as_html(self.table())


def as_html(shown: RenderableType) -> str:
    """What rich would print, as HTML; what is in it is escaped.

    Args:
        shown: A table, for example.

    Example:
        >>> from rich.table import Table
        >>> as_html(Table("a < b")).count("a &lt; b")
        1
    """
    from rich.console import Console

    console = Console(record=True, file=io.StringIO(), width=_WIDTH, color_system="truecolor")
    console.print(shown)
    form = '<pre style="line-height:1.25;white-space:pre;overflow-x:auto;font-family:monospace">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=form)
