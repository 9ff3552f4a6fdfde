"""Figures, and figures as files, drawn by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import atomic_write
from ..optional import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """An empty figure that no window shows.

    Args:
        **settings: As ``matplotlib.figure.Figure`` takes them.

    Raises:
        MissingPackageError: matplotlib is not installed.

    Example:
        >>> axis = new_figure(figsize=(6, 4)).subplots()
    """
    return needed("matplotlib.figure").Figure(**settings)


def has_data(figure: Figure) -> bool:
    """Whether anything was drawn on one of a figure's axes."""
    return any(axis.has_data() for axis in figure.axes)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all.

    Raises:
        QSAM2Error: The file cannot be written.
    """
    needed("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format="png")
    return path
