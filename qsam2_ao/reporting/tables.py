"""Tables of a model before and after quantization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from .size import human_bytes


@dataclass(frozen=True)
class ModelRow:
    """One model of a comparison.

    Attributes:
        name: For example "float32" or "w4a8".
        bits: Bits of weights and activations as people write them, for example "4 / 8"; None where not known.
        file_bytes: Size of its file.
        j: Region similarity J in percent; None where not measured, as for all that follow.
        f: Contour accuracy F in percent.
        jf: J&F, the mean of the two, in percent.
        miou: Mean intersection over union of image segmentation, in percent.
    """

    name: str
    bits: str | None = None
    file_bytes: int | None = None
    j: float | None = None
    f: float | None = None
    jf: float | None = None
    miou: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-able values."""
        return asdict(self)


def comparison_table(rows: Sequence[ModelRow], title: str = "Before and after") -> Table:
    """A rich table of models, each measure with its difference to the first row below it.

    Args:
        rows: The reference first.
        title: Shown above.

    Returns:
        A table with the columns model, bits, J&F, J, F, mIoU (those that any row has) and file size.

    Example:
        >>> comparison_table([ModelRow("float32", "32", 5_000_000, jf=81.0)]).row_count
        1
    """
    table = Table(title=escape(title), title_justify="left")
    table.add_column("model", overflow="fold")
    columns: list[Callable[[ModelRow], str]] = []
    if any(row.bits is not None for row in rows):
        table.add_column("bits w / a", justify="right", no_wrap=True)
        columns.append(lambda row: row.bits or "-")
    for heading, field in (("J&F", "jf"), ("J", "j"), ("F", "f"), ("mIoU", "miou")):
        if any(getattr(row, field) is not None for row in rows):
            table.add_column(heading, justify="right", no_wrap=True)
            columns.append(lambda row, field=field: _score(row, rows[0], field))  # type: ignore[misc]
    if any(row.file_bytes is not None for row in rows):
        table.add_column("file", justify="right", no_wrap=True)
        columns.append(lambda row: _size(row, rows[0]))
    for row in rows:
        table.add_row(escape(row.name), *(column(row) for column in columns))
    return table


def _score(row: ModelRow, reference: ModelRow, field: str) -> str:
    value, before = getattr(row, field), getattr(reference, field)
    if value is None:
        return "-"
    return f"{value:.1f}" if row is reference or before is None else f"{value:.1f}\n{value - before:+.1f}"


def _size(row: ModelRow, reference: ModelRow) -> str:
    if row.file_bytes is None:
        return "-"
    text = human_bytes(row.file_bytes)
    if row is reference or not reference.file_bytes:
        return text
    return f"{text}\n{reference.file_bytes / row.file_bytes:.1f}x smaller"
