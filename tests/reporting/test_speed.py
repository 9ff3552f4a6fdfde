from __future__ import annotations

from pathlib import Path

import pytest

from qsam2_ao import coverage_report, layer_times, load_qsam2
from qsam2_ao.native import why_no_kernels
from qsam2_ao.reporting.speed import LayerTime
from qsam2_ao.stage import stage_of


@pytest.mark.slow
@pytest.mark.parametrize("target", ["packed", "int8"])
def test_every_layer_of_a_video_is_timed(packed_file: Path, target: str) -> None:
    if target == "int8" and (reason := why_no_kernels()):
        pytest.skip(reason)
    model = load_qsam2(packed_file, target=target)
    modules = [(type(module), len(module._forward_pre_hooks)) for module in model.modules()]
    times = layer_times(model, rounds=2, progress=False)
    records = {record.name: record for record in stage_of(model).layers}
    missing = records.keys() - times.keys()
    # Masks as prompts are not among the video's prompts.
    assert not {name for name in missing if "mask_downscaling" not in name}
    for name, found in times.items():
        assert min(found.ms, found.float_ms) > 0, name
        if records[name].kind == "linear":
            assert found.shape[-1] == records[name].shape[1], name
    assert [(type(module), len(module._forward_pre_hooks)) for module in model.modules()] == modules


def test_slower_layers_are_flagged(packed_file: Path) -> None:
    model = load_qsam2(packed_file)
    slow, fast, close = [record.name for record in stage_of(model).layers][:3]
    times = {slow: LayerTime((4, 4), 3.0, 1.0), fast: LayerTime((4, 4), 1.0, 3.0), close: LayerTime((4, 4), 1.05, 1.0)}
    report = coverage_report(model, times)
    rows = {row.name: row for row in report.layers}
    assert "slower than in float: 3 ms against 1" in rows[slow].note
    assert rows[fast].note == rows[fast].reason
    assert rows[close].note == rows[close].reason
    assert {row["name"]: row["note"] for row in report.to_dict()["layers"]}[slow] == rows[slow].note
    assert "float ms" in [column.header for column in report.table().columns]
    assert "float ms" not in [column.header for column in coverage_report(model).table().columns]
