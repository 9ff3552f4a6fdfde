"""The inference benchmark's report and plots, from made-up measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qsam2_ao.benchmark.inference.avx2 import AVX2, AVX_VNNI
from qsam2_ao.benchmark.inference.footprint import CHECKPOINT
from qsam2_ao.benchmark.inference.methods import REFERENCE, SCORES
from qsam2_ao.benchmark.inference.parts import DECODER, ENCODER, VIDEO
from qsam2_ao.benchmark.inference.plots import growth, latency_against_size
from qsam2_ao.benchmark.inference.publish import publish
from qsam2_ao.benchmark.inference.report import in_order, markdown, targets
from qsam2_ao.errors import QConfigError
from qsam2_ao.native.build import kind
from qsam2_ao.reporting.environment import environment
from qsam2_ao.reporting.figures import save_figure

TIMES = {REFERENCE: 100.0, "OpenVINO INT8": 40.0, "qsam2 W8A8": 31.0, "qsam2 W4A8": 32.0, "qsam2 W2A8": 33.0}


def records() -> list[dict[str, Any]]:
    where = {"size": 512, "threads": 1, "spread": 1.0, "rounds": 5, "model": "sam2.1-t"}
    found = [
        {**where, "part": part, "method": method, "ms": ms * scale, "vs_float": 100 / ms}
        for part, scale in ((ENCODER, 1), (VIDEO, 32), ("memory attention, 1 frame", 1), (DECODER, 1))
        for method, ms in TIMES.items()
    ]
    return [*found, *({**r, "size": 1024, "ms": 4 * r["ms"]} for r in found)]


def files() -> list[dict[str, Any]]:
    sizes = {CHECKPOINT: 8_000_000, "w8a8": 4_000_000, "w4a8": 2_000_000, "w2a8": 1_000_000}
    seconds = {"build_seconds": 1.0, "load_seconds": 0.9, "lowered_seconds": 2.0, "mask_seconds": 3.0}
    base = 32 << 20
    memory = {"load_bytes": base + 3_000_000, "lowered_bytes": base + 3_000_001, "mask_bytes": 90_000_000}
    return [
        {"model": "sam2.1-t", "size": 1024, "file": k, "file_bytes": v, **seconds, **memory} for k, v in sizes.items()
    ]


def test_targets_are_met_or_missed() -> None:
    rows = {(where, what): (value, limit, least) for where, what, value, limit, least in targets(records(), files())}
    where = "sam2.1-t, 512 px, threads: 1"
    assert rows[where, f"{ENCODER}: W4A8 against {REFERENCE}"] == (3.125, 2.8, True)
    assert rows[where, f"{ENCODER}: W4A8 against OpenVINO INT8"] == (1.25, 1.25, True)
    assert rows[where, f"{ENCODER}: W2A8 against W8A8"][0] == 31 / 33
    assert rows["sam2.1-t", "file: bf16 checkpoint / w2a8"] == (8, 7.0, True)
    assert rows["sam2.1-t", "w4a8, peak memory of loading less 32 MiB / file"] == (1.5, 1.5, False)
    text = markdown(records(), files(), [], [], {}, [], [], {}, environment(), "command", {})
    assert "| W2A8 against W8A8 | 0.94 | at least 0.95 | no |" in text.replace(f"{ENCODER}: ", "")
    assert "peak memory of loading less 32 MiB / file | 1.50 | at most 1.5 | yes |" in text
    assert "peak memory of loading for int8 less 32 MiB / file | 1.50 | at most 1.5 | no |" in text


def test_records_stand_in_order_whenever_they_were_measured() -> None:
    def record(model: str, size: int, threads: int, part: str, method: str) -> dict[str, Any]:
        return {"model": model, "size": size, "threads": threads, "part": part, "method": method}

    expected = [
        record("sam2.1-t", 1024, 1, ENCODER, "slow"),
        record("sam2.1-t", 1024, 1, ENCODER, "fast"),  # methods stay as they came
        record("sam2.1-t", 1024, 1, DECODER, "slow"),
        record("sam2.1-t", 1024, 2, ENCODER, "slow"),
        record("sam2.1-t", 512, 1, ENCODER, "slow"),
        record("sam2.1-b+", 1024, 1, ENCODER, "slow"),
    ]
    assert in_order([*expected[2:], *expected[:2]]) == expected


def test_the_report_shows_every_measurement() -> None:
    part = "memory attention, 1 frame"
    work = [
        {"model": "sam2.1-t", "size": 512, "part": p, "layer_gflop": 8.0, "attention_gflop": 4.0, "tensor_mb": 20.0}
        for p in (ENCODER, part)
    ]
    compiled = [{"model": "sam2.1-t", "size": 512, "method": REFERENCE, "cold_seconds": 61.04, "warm_seconds": 9.96}]
    ceilings = {"1": {"int8": 1000.0, "bf16": 500.0}}
    memory = [{"model": "sam2.1-t", "size": 256, "frames": n, "kept_mb": n / 10, "rest_mb": 0.0} for n in (50, 500)]
    found = environment("onnxruntime", "no-such-package")
    text = markdown(
        records(), files(), compiled, work, ceilings, memory, [], {}, found, "command", {"Plot": "plot.png"}
    )
    assert "| qsam2 W4A8 | 32.0 ± 1.0 (3.12x) | 32.0 ± 1.0 (3.12x) | 32.0 ± 1.0 (3.12x) | 32.0 ± 0.0 (3.12x) |" in text
    # 8 / 1000 + 4 / 500 seconds are 16 ms, half of 32.
    assert "| sam2.1-t | 512 | 1 | image encoder | 8.0 | 4.0 | 20.0 | 32.0 | 50 % |" in text
    assert f"| sam2.1-t | 512 | {REFERENCE} | 61.0 | 10.0 |" in text
    assert "- torchao: " in text
    assert "no-such-package" not in text
    assert "(50.0 MB after 500); all else is 0.0 MB" in text
    assert "![Plot](plot.png)" in text


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    text = markdown([], [], [], [], {}, [], [], {}, environment(), "command", {})
    assert "`command`" in text
    assert "##" not in text, "no section without a measurement"
    assert save_figure(latency_against_size([], []), tmp_path / "empty.png").exists()
    assert growth([]) is None
    assert growth([r for r in records() if r["size"] == 512]) is None


def test_plots_have_a_point_per_method(tmp_path: Path) -> None:
    figure = latency_against_size(records(), files())
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert len(axes) == 2  # of two sizes
    assert all(len(axis.collections) == len(TIMES) for axis in axes)
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(TIMES)
    other = [{**r, "model": "sam2.1-s", "part": DECODER} for r in records()]
    figure = latency_against_size([*records(), *other], [*files(), *({**f, "model": "sam2.1-s"} for f in files())])
    assert len(figure.axes) == 2, "none of a model whose encoder was not measured"
    scores = [{**r, "method": SCORES} for r in records()]
    assert len(latency_against_size(scores, files()).axes[0].collections) == len(TIMES)
    pixels, frames = growth(records()).axes
    assert len(pixels.lines) == 2
    assert not frames.get_visible()  # memory attention has one point, which is no growth
    assert list(pixels.lines[0].get_xdata()) == [512**2 / 1e6, 1024**2 / 1e6]
    more = [{**r, "part": "memory attention, 7 frames"} for r in records() if r["part"].startswith("memory")]
    frames = growth([*more, *records()]).axes[1]
    assert [list(line.get_xdata()) for line in frames.lines] == [[1, 7], [1, 7]]
    for number, drawn in enumerate((figure, growth(records()))):
        assert save_figure(drawn, tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def busy() -> list[dict[str, Any]]:
    seconds = {"quiet": 2.0, "quiet, one thread": 3.0, "beside 2 busy loops": 3.5, "beside 4 busy loops": 6.2}
    where = {"model": "embedded", "size": 96, "cores": 2, "method": "int8", "load_seconds": 0.5, "rounds": 3}
    return [{**where, "situation": k, "seconds": v} for k, v in {**seconds, "3 at once": 4.8}.items()]


def test_a_busy_machine_has_its_section_and_its_targets() -> None:
    text = markdown(records(), files(), [], [], {}, [], busy(), {}, environment(), "command", {})
    assert "| embedded, 96 px, int8 | beside 4 busy loops / quiet | 3.10 | at most 3.0 | no |" in text
    assert "| embedded, 96 px, int8 | 3 at once / quiet, one thread | 1.60 | at most 1.7 | yes |" in text
    assert "### embedded, 96 px, cores: 2, rounds: 3" in text
    row = "| int8 | 2.00 (load 0.50) | 3.00 (load 0.50) | 3.50 (load 0.50, 1.75x) | 6.20 (load 0.50, 3.10x) |"
    assert f"{row} 4.80 (load 0.50, 1.60x) |" in text


def test_older_processors_have_a_section_of_their_own() -> None:
    where = {"model": "sam2.1-t", "part": "image encoder", "size": 1024, "threads": 1, "rounds": 5, "spread": 10.0}
    avx2 = [
        {**where, "method": "torch fp32 eager", "ms": 3500.0, "vs_float": 1.0},
        {**where, "method": "qsam2 W4A8", "ms": 2300.0, "vs_float": 1.52},
    ]
    text = markdown(records(), files(), [], [], {}, [], [], {AVX2: avx2, AVX_VNNI: []}, environment(), "command", {})
    assert "### sam2.1-t, 1024 px, threads: 1, AVX2" in text
    assert "### sam2.1-t, 1024 px, threads: 1, AVX-VNNI" not in text
    assert "| qsam2 W4A8 | 2300.0 ± 10.0 (1.52x) |" in text
    assert ("kept to AVX2 (`ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2`)" in text) == (kind() != "avx2")
    text = markdown(records(), files(), [], [], {}, [], [], {AVX_VNNI: avx2}, environment(), "command", {})
    assert "### sam2.1-t, 1024 px, threads: 1, AVX-VNNI" in text
    assert ("kept to AVX-VNNI" in text) == (kind() != "avx_vnni")
    assert "without AVX512" not in markdown([], [], [], [], {}, [], [], {}, environment(), "command", {})


def test_the_embedded_model_comes_before_the_official_ones() -> None:
    tiny = {**busy()[0], "model": "sam2.1-t"}
    assert in_order([tiny, busy()[0]])[0]["model"] == "embedded"


def test_a_choice_of_measurements_replaces_no_other_report(tmp_path: Path) -> None:
    (tmp_path / "inference.json").write_text("[]")
    with pytest.raises(QConfigError, match=r"inference.json is of other methods .*--output"):
        publish(tmp_path, parts=["AVX2"])
    assert (tmp_path / "inference.json").read_text() == "[]"
