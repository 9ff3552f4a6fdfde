"""Tables in notebooks."""

from __future__ import annotations

import importlib
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao import coverage_report, load_embedded, load_qsam2
from qsam2_ao.reporting.notebook import model_html, show_models_in_notebooks
from qsam2_ao.reporting.size import ModelSize
from qsam2_ao.reporting.summary import ModelSummary, model_summary


def test_a_quantized_model_and_its_coverage_are_tables(packed_file: Path):
    model = load_qsam2(packed_file)
    page = model_html(model)
    assert page.startswith("<pre")
    for text in ("deployed w4a8", "4 x 8 bits, packed", "image_encoder", "elsewhere", "smaller than bfloat16"):
        assert text in page
    summary = model_summary(model)
    assert sum(sum(found.values()) for found in summary.layers.values()) == len(coverage_report(model).layers)
    assert "sam_mask_decoder" in coverage_report(model)._repr_html_()
    widest = max(map(len, re.sub(r"<[^>]+>", "", coverage_report(model)._repr_html_()).splitlines()))
    assert widest > 100, "no name is broken: a notebook scrolls"
    out = io.StringIO()
    Console(file=out, width=160).print(summary)
    assert "image_encoder" in out.getvalue()


def test_a_prepared_model_is_larger_and_not_half_times_smaller():
    summary = ModelSummary("prepared", "w4a8", ModelSize(8, 32, 16, 32, 0, 0), 0.5, {})
    assert "2.0x larger than bfloat16" in str(summary.table().title)


def test_a_float_model_is_left_to_others():
    assert model_html(load_embedded()) is None


def test_a_notebook_asks_for_every_sam2(monkeypatch: pytest.MonkeyPatch):
    asked: dict[type, object] = {}

    def for_type_by_name(module: str, name: str, function: object) -> None:  # as IPython's formatters have it
        asked[getattr(importlib.import_module(module), name)] = function

    shell = SimpleNamespace(
        display_formatter=SimpleNamespace(formatters={"text/html": SimpleNamespace(for_type_by_name=for_type_by_name)})
    )
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    show_models_in_notebooks()
    assert asked == {SAM2Base: model_html}
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    show_models_in_notebooks()
