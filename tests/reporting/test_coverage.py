from __future__ import annotations

import io
import json

import numpy as np
import pytest
import rich
import torch
from rich.console import Console
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor

from qsam2_ao import convert_qsam2, coverage_report, load_qsam2, prepare_qsam2, save_qsam2
from qsam2_ao.models.embedded import build_embedded


@pytest.fixture(scope="module")
def prepared() -> SAM2Base:
    photos = list(np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8))
    model = build_embedded(SAM2VideoPredictor)
    return prepare_qsam2(
        model, {"image_encoder": "w4a8", "memory_attention": "w2a16"}, calibration_data=photos, vrc=None
    )


@pytest.mark.slow
def test_every_parameter_is_in_exactly_one_row(prepared: SAM2Base) -> None:
    model = build_embedded(SAM2VideoPredictor)
    expected = sum(p.numel() for p in model.parameters())
    for each in (model, prepared, convert_qsam2(prepared)):
        report = coverage_report(each)
        quantizers = sum(p.numel() for name, p in each.named_parameters() if "log_alpha" in name)
        rows = [row for row in report.layers if "log_alpha" not in row.name]
        assert sum(row.parameters for row in rows) == expected, quantizers
        assert len({row.name for row in rows}) == len(rows)


def test_a_float_model_says_so() -> None:
    report = coverage_report(build_embedded())
    assert report.quantized_share == 0
    assert all(row.target == "float" and row.reason for row in report.layers)


def test_rows_say_bits_granularity_and_target(prepared: SAM2Base) -> None:
    for model, target in ((prepared, "fake-quantized"), (convert_qsam2(prepared), "packed")):
        rows = {row.name: row for row in coverage_report(model).layers}
        qkv = rows["image_encoder.trunk.blocks.0.attn.qkv"]
        assert (qkv.type, qkv.region, qkv.weight_bits, qkv.activation_bits) == ("linear", "image_encoder", 4, 8)
        assert (qkv.granularity, qkv.target, qkv.reason) == ("channel", target, "")
        attention = rows["memory_attention.layers.0.linear1"]
        assert (attention.weight_bits, attention.activation_bits) == (2, 32)


def test_what_stayed_float_says_why(prepared: SAM2Base) -> None:
    rows = {row.name: row for row in coverage_report(convert_qsam2(prepared)).layers}
    for name, reason in {
        "image_encoder.trunk.blocks.0.norm1": "normalization",
        "sam_mask_decoder.output_upscaling.0": "transposed",
        "sam_mask_decoder.conv_s0": "its qconfig keeps it in float",
        "sam_prompt_encoder.mask_downscaling.0": "outside the regions",
        "sam_prompt_encoder.no_mask_embed": "embedding",
        "no_mem_embed": "added or multiplied",
    }.items():
        assert rows[name].target == "float"
        assert reason in rows[name].reason


def test_a_target_that_does_not_take_a_layer_says_why(prepared: SAM2Base, tmp_path) -> None:
    save_qsam2(convert_qsam2(prepared), tmp_path / "m.safetensors")
    rows = {r.name: r for r in coverage_report(load_qsam2(tmp_path / "m.safetensors", target="int4")).layers}
    encoder = rows["image_encoder.trunk.blocks.0.attn.qkv"]
    assert encoder.target == "packed"
    assert "input is quantized" in encoder.reason
    assert rows["memory_attention.layers.0.linear1"].target == "int4"


def test_it_is_data_and_a_table(prepared: SAM2Base, capsys: pytest.CaptureFixture[str]) -> None:
    report = coverage_report(prepared)
    data = json.loads(json.dumps(report.to_dict()))
    assert len(data["layers"]) == len(report.layers)
    assert 0 < data["quantized_share"] == report.quantized_share < 1
    rich.print(report.table())
    assert "% of the parameters" in capsys.readouterr().out
    assert torch.Size(report.layers[0].shape).numel() > 0


def test_a_narrow_terminal_shows_every_column_and_each_reason_once(prepared: SAM2Base) -> None:
    report, out = coverage_report(prepared), io.StringIO()
    Console(file=out, width=80).print(report.table())
    lines = out.getvalue().splitlines()
    assert lines[1].split() == ["layer", "type", "shape", "bits", "scales", "target", "note"]
    (number,) = (line.split(":")[0] for line in lines if line.strip().endswith(": normalization is computed in float"))
    norm = next(line for line in lines if " LayerNorm " in line)
    assert norm.split()[-2:] == ["float", number]
    assert any("4 x 8" in line and "fake-quantized" in line for line in lines)
