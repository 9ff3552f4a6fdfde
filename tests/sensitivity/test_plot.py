"""The plot of a region: every measured point, and a ring around each choice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qsam2_ao.sensitivity import Assignment, LayerSensitivity, Sensitivity, quantizable_layers
from qsam2_ao.sensitivity.plot import region_figure


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["sqnr", "jf"])
def test_all_layers_of_the_region_and_no_others(model: Any, metric: str, tmp_path: Path):
    layers = quantizable_layers(model)
    rng = np.random.default_rng(0)
    records = tuple(
        LayerSensitivity(layer.name, layer.region, bits, 1, float(rng.random()) / bits, {})
        for layer in layers.values()
        for bits in (2, 4)
    )
    sensitivity = Sensitivity(metric, tuple(layers.values()), records, {})
    assignment = Assignment(dict.fromkeys(layers, 4), 0.0, 1, 1, metric)
    inside = [layer.name for layer in layers.values() if layer.region == "memory_encoder"]
    figure = region_figure(sensitivity, "memory_encoder", assignment)
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == inside
    two, four, chosen = axis.lines
    for line, bits in ((two, 2), (four, 4), (chosen, 4)):
        np.testing.assert_allclose(line.get_xdata(), [sensitivity.loss(name, bits) for name in inside])
    assert axis.get_xscale() == ("log" if metric == "sqnr" else "linear")
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
