from __future__ import annotations

import pytest
from benchmark_experiments import make_experiment

from qsam2_ao.benchmark.accuracy.data import PROCEDURAL
from qsam2_ao.benchmark.accuracy.experiment import Budget
from qsam2_ao.benchmark.accuracy.illustrate import typical_video
from qsam2_ao.benchmark.accuracy.methods import METHODS, RIVALS
from qsam2_ao.benchmark.accuracy.models import WeightShape
from qsam2_ao.benchmark.accuracy.plots import accuracy_against_bits, accuracy_against_bytes
from qsam2_ao.benchmark.accuracy.report import markdown
from qsam2_ao.benchmark.accuracy.results import Results
from qsam2_ao.reporting.environment import environment
from qsam2_ao.reporting.figures import save_figure

SEARCH = {
    "kind": "learning rate",
    "method": "LSQ",
    "model": "heavy-tailed",
    "setting": "W2A4",
    "scores": [1.0, 2.0, 0.0, 1.5],
    "rates": {"lr": 1e-3, "vectors": 1.0, "ranges": 1.0},
}


def test_records_are_flat(experiments):
    records = Results(experiments).records()
    assert len(records) == 6 * len(experiments)
    assert records[0] == {
        "model": "plain",
        "method": "float",
        "setting": "float",
        "metric": "J",
        "seed": 0,
        "value": pytest.approx(84.5),
    }


def test_methods_are_compared_over_seeds(experiments):
    results = Results(experiments)
    assert results.best("plain", "W2A4", "J&F", RIVALS) == "LSQ"
    assert results.difference("plain", "QSAM2", "LSQ", "W2A4", "J&F").value == pytest.approx(15)
    assert results.difference("plain", "QSAM2", "PACT-SAWB", "W2A4", "J&F") is None
    assert results.spread("plain", "QSAM2", "W2A4", "J&F").seeds == 2
    assert results.spread("plain", "float", "W2A8", "J&F").mean == pytest.approx(84.5)


def test_the_report_says_what_was_reached_and_what_not(experiments):
    shapes = {
        "plain": [WeightShape("image_encoder.x", 0.5, 4.0)],
        "heavy-tailed": [WeightShape("image_encoder.x", 9, 20)],
    }
    text = markdown(
        Results([*experiments, SEARCH]),
        Budget(),
        environment(),
        "the command",
        PROCEDURAL,
        shapes,
        {"Bits": "bits.png"},
    )
    assert "| heavy-tailed | W2A4 | J&F | 9.7 over the best rival | +15.0 [+15.0, +15.0] (LSQ) | yes |" in text
    assert "| heavy-tailed | W2A8 | J&F | at most 3 under float | -4.5 [-4.5, -4.5] (float) | no |" in text
    assert "+67% relative | yes" in text
    assert "| QSAM2 | 80.0 ± 0.7 | 80.0 ± 0.7 |" in text
    assert "W4A8 | J&F | not worse" not in text  # was not run
    assert "| LSQ | heavy-tailed | W2A4 | 1.0 | **2.0** | 0.0 | 1.5 |" in text
    assert "| `image_encoder.x` | 0.5 / 4.0 | 9.0 / 20.0 |" in text
    assert "![Bits](bits.png)" in text
    assert "the command" in text


def test_mixed_bits_are_to_win_back_half_of_the_loss(experiments):
    more = [
        make_experiment("plain", "VRC+GPTQ", "PTQ W3", level=76),
        make_experiment("plain", "VRC+GPTQ, mixed bits", "PTQ W3", level=77.5),
    ]
    text = markdown(Results(experiments + more), Budget(), environment(), "command", PROCEDURAL, {}, {})
    assert "| plain | PTQ W3 | J&F | mixed bits of the same size win back half of the loss |" in text
    assert "+1.5 [+1.5, +1.5] of 4.0 | no |" in text
    more[1] = make_experiment("plain", "VRC+GPTQ, mixed bits", "PTQ W3", level=78.5)
    text = markdown(Results(experiments + more), Budget(), environment(), "command", PROCEDURAL, {}, {})
    assert "+2.5 [+2.5, +2.5] of 4.0 | yes |" in text


def test_the_shown_video_is_a_typical_one():
    reference, quantized = (make_experiment("heavy-tailed", m, s) for m, s in (("float", "float"), ("LSQ", "W2A4")))
    #                               badly tracked   lost: 5    1    9
    reference["sums"]["J&F"] = [3.0 * v for v in (10, 90, 80, 85)]
    quantized["sums"]["J&F"] = [3.0 * v for v in (0, 85, 79, 76)]
    reference["counts"]["J&F"] = quantized["counts"]["J&F"] = [3] * 4
    assert typical_video(Results([reference, quantized])) == 3  # of videos 1 and 3, the upper median
    assert typical_video(Results([reference])) == 0


def test_rates_that_were_given_are_said_so(experiments):
    given = {**SEARCH, "scores": []}
    budget = Budget(rates=Budget().rates[:1])
    text = markdown(Results([*experiments, given]), budget, environment(), "command", PROCEDURAL, {}, {})
    assert "Of all methods 0.0003, 1x, 1x" in text
    assert "None was searched for." in text
    assert "from 3 bits on" not in text
    part_by_part = make_experiment("plain", "QSAM2, part by part", "W3A8")
    text = markdown(Results([part_by_part, given]), budget, environment(), "command", PROCEDURAL, {}, {})
    assert "those of QSAM2, part by part 10 times that, 0.1 times all of it part by part from 3 bits on. None" in text


def test_nothing_measured_is_a_report_too():
    text = markdown(Results([]), Budget(), environment(), "command", PROCEDURAL, {}, {})
    assert "0 experiments are finished" in text
    assert "Processors" not in text


def test_every_processor_is_named(experiments):
    first, second, *others = experiments
    made = [{**each, "environment": {"processor": name}} for each, name in ((first, "one"), (second, "two"))]
    text = markdown(Results([*made, *others]), Budget(), environment(), "command", PROCEDURAL, {}, {})
    assert f"one thread each: not noted ({len(others)}), one (1), two (1)." in text


def test_a_plot_without_a_point_has_no_data():
    given = make_experiment("plain", "LSQ, equalized and part by part", "W2A2")
    assert not any(axis.has_data() for axis in accuracy_against_bytes(Results([given]), ["plain"]).axes)


def test_plots_leave_no_method_out():
    methods = [
        name
        for name, method in METHODS.items()
        if method.group in ("rival", "ours") and not name.startswith("VRC+GPTQ")
    ]
    results = Results(make_experiment("plain", method, "W2A8") for method in methods)
    assert len(methods) > 8
    for draw in (accuracy_against_bits, accuracy_against_bytes):
        shown = [text.get_text() for text in draw(results, ["plain"]).axes[0].get_legend().get_texts()]
        assert shown == methods


def test_plots_are_written(experiments, tmp_path):
    for number, draw in enumerate((accuracy_against_bits, accuracy_against_bytes)):
        path = save_figure(draw(Results(experiments)), tmp_path / f"{number}.png")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_method_that_was_not_run_with_8_bit_inputs_has_no_line():
    results = Results([make_experiment("plain", "LSQ", "W2A8"), make_experiment("plain", "QSAM2", "W2A4")])
    legend = accuracy_against_bits(results, ["plain"]).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["LSQ"]


def test_a_method_looks_alike_in_every_panel():
    experiments = [make_experiment("heavy-tailed", "QSAM2", "W2A8")]
    experiments += [make_experiment("plain", method, "W2A8") for method in ("LSQ", "QSAM2")]
    left, right = accuracy_against_bits(Results(experiments)).axes
    colours = {container.get_label(): container[0].get_color() for container in right.containers}
    assert left.containers[0][0].get_color() == colours["QSAM2"] != colours["LSQ"]
    assert {text.get_text() for text in left.get_legend().get_texts()} == {"LSQ", "QSAM2"}


def test_an_interval_on_both_sides_of_no_difference_tells_nothing_apart():
    def report(*levels):
        rival, ours = make_experiment("plain", "LSQ", "W4A8"), make_experiment("plain", "QSAM2", "W4A8")
        ours["sums"]["J&F"] = [ours["counts"]["J&F"][0] * level for level in levels]
        return markdown(Results([rival, ours]), Budget(), environment(), "command", PROCEDURAL, {}, {})

    row = "| plain | W4A8 | J&F | not worse than the best rival |"
    judged = {levels: report(*levels).split(row)[1].split("|")[1].strip() for levels in ((60,) * 4, (90, 73, 60, 70))}
    assert judged == {(60,) * 4: "no", (90, 73, 60, 70): "not told apart"}
