"""Prepared and quantized models in notebooks: a table in place of pages of modules."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


def show_models_in_notebooks() -> None:
    """Let notebooks show a SAM2 that is prepared or quantized by a table; elsewhere nothing is done."""
    if "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        formatter = shell.display_formatter.formatters["text/html"]
        formatter.for_type_by_name("sam2.modeling.sam2_base", "SAM2Base", model_html)


def model_html(model: SAM2Base) -> str | None:
    """The summary of a prepared or quantized model; None, which leaves it to others, of a float one."""
    from ..stage import stage_of

    if stage_of(model).name == "float":
        return None
    from .summary import model_summary

    return model_summary(model)._repr_html_()
