"""A comparison as files."""

from __future__ import annotations

import json
import os
from pathlib import Path

from PIL import Image

from ..errors import CheckpointError
from ..files import atomic_write
from ..reporting.overlay import save_picture
from .results import Comparison

RESULTS, SHEET = "comparison.json", "contact_sheet.png"


def save_comparison(
    comparison: Comparison, sheet: Image.Image | None, output: str | os.PathLike[str]
) -> tuple[Path, Path | None]:
    """Write ``comparison.json`` and ``contact_sheet.png``.

    Args:
        comparison: The comparison.
        sheet: The contact sheet; without one, an old one is removed.
        output: The folder to write to.

    Returns:
        Both paths.

    Raises:
        QSAM2Error: A file cannot be written.
    """
    results, picture = Path(output) / RESULTS, Path(output) / SHEET
    with atomic_write(results) as temporary:
        temporary.write_text(json.dumps(comparison.to_dict(), indent=2, allow_nan=False), "utf-8")
    if sheet is None:
        picture.unlink(missing_ok=True)
        return results, None
    return results, save_picture(sheet, picture)


def read_comparison(path: str | os.PathLike[str]) -> Comparison:
    """Read ``comparison.json``.

    Raises:
        CheckpointError: It is absent, or no comparison.

    Example:
        >>> read_comparison("outputs/compare/comparison.json").models[0].label  # doctest: +SKIP
        'embedded'
    """
    try:
        return Comparison.from_dict(json.loads(Path(path).read_text("utf-8")))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is no result of qsam2 compare ({error})") from error
