from __future__ import annotations

import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_experiments import make_experiment
from real_pictures import write_clip, write_library, write_validation

from qsam2_ao.benchmark.accuracy import data, experiment
from qsam2_ao.benchmark.accuracy.data import PROCEDURAL, RealData, calibration_images
from qsam2_ao.benchmark.accuracy.experiment import Budget, Experiments, deployed, prepare_method, score
from qsam2_ao.benchmark.accuracy.methods import METHODS, parse_setting
from qsam2_ao.benchmark.accuracy.models import build_model
from qsam2_ao.benchmark.accuracy.plan import Unit
from qsam2_ao.benchmark.accuracy.report import markdown
from qsam2_ao.benchmark.accuracy.results import Results
from qsam2_ao.benchmark.accuracy.run import run_plan
from qsam2_ao.benchmark.accuracy.store import ExperimentStore
from qsam2_ao.errors import CheckpointError, DataError
from qsam2_ao.evaluation import ImageSample
from qsam2_ao.recipe import quantized_layers
from qsam2_ao.reporting.environment import environment
from qsam2_ao.training.batches import BatchKind, Stage
from qsam2_ao.training.qat import Rates

TINY = Budget(steps=1, images=2, videos=2, frames=3, search_videos=2, rates=(Rates(1e-4), Rates(1e-3, 10, 10)))


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_a_run_goes_on_from_what_is_finished(tmp_path):
    store = ExperimentStore(tmp_path / "cells.jsonl")
    units = [Unit("plain", "float", "float", (0,)), Unit("plain", "LSC", "W2A4", (0, 1))]
    results = run_plan(units, store, TINY, workers=2, progress=False)
    assert [r["kind"] for r in results].count("learning rate") == 1
    experiments = {(r["method"], r["seed"]): r for r in results if r["kind"] == "cell"}
    assert set(experiments) == {("float", 0), ("LSC", 0), ("LSC", 1)}
    search = next(r for r in results if r["kind"] == "learning rate")
    assert len(search["scores"]) == 2
    assert experiments["LSC", 0]["rates"] == search["rates"]
    assert experiments["LSC", 0]["recipe"] == search["recipe"] == dataclasses.asdict(METHODS["LSC"])
    assert len(experiments["LSC", 0]["losses"]) == 1
    assert experiments["LSC", 0]["bytes"] < experiments["float", 0]["bytes"] / 3
    assert all(0 <= value <= 100 for value in experiments["LSC", 0]["metrics"].values())
    text = store.path.read_text()
    run_plan(units, store, TINY, workers=2, progress=False)
    assert store.path.read_text() == text
    with pytest.raises(CheckpointError, match="another budget"):
        run_plan(units, store, dataclasses.replace(TINY, steps=2), progress=False)


def test_results_of_a_method_that_has_changed_are_refused(tmp_path):
    store = ExperimentStore(tmp_path / "cells.jsonl")
    recipe = dataclasses.asdict(METHODS["QSAM2"])
    made = {"kind": "cell", **make_experiment("plain", "QSAM2", "W2A4", level=50), "budget": dataclasses.asdict(TINY)}
    store.append(made)  # as versions wrote it that kept no recipe
    store.append({**made, "recipe": recipe})
    store.append({**made, "recipe": {name: value for name, value in recipe.items() if name != "held_out"}})
    assert len(run_plan([], store, TINY, progress=False)) == 3
    with pytest.raises(CheckpointError, match="must not be averaged with them"):
        run_plan([Unit("plain", "QSAM2", "W2A4", (0, 1))], store, TINY, progress=False)
    store.append({**made, "recipe": {**recipe, "range_rate": 3.0}})
    with pytest.raises(CheckpointError, match=r"results of QSAM2 as it was before \(range_rate\)"):
        run_plan([], store, TINY, progress=False)


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_held_out_batches_keep_the_start_from_a_training_that_ruins_it(monkeypatch):
    monkeypatch.setattr(experiment, "HELD_OUT", 1)
    experiments = Experiments("plain", "QSAM2, part by part", "W2A4", TINY)
    ruined = experiments.run(0, Rates(0.3))
    untrained = score(deployed(experiments.start())[0], "test", TINY.videos, TINY.frames)
    assert ruined["sums"] == untrained.sums


def test_a_grid_of_one_rate_is_not_searched():
    one = dataclasses.replace(TINY, rates=(Rates(1e-4),))
    found = Experiments("plain", "LSQ", "W2A4", one).search()
    assert (found["scores"], found["rates"]) == ([], dataclasses.asdict(Rates(1e-4)))


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_real_pictures_are_calibrated_trained_and_measured_on(tmp_path):
    write_library(tmp_path / "train")
    write_validation(tmp_path / "validation")
    write_clip(tmp_path / "test" / "clips")
    # The photographs of the validation are all taken for it; one more is left for the test.
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        source = tmp_path / "validation" / "coco128" / kind / f"0.{suffix}"
        for number in range(3, 50):
            shutil.copy(source, source.with_stem(str(number)))
    real, store = RealData(str(tmp_path)), ExperimentStore(tmp_path / "cells.jsonl")
    real.check()
    assert len(real.pictures("val", 2, 8)["mIoU_box"][1]) == 48
    assert len(real.pictures("test", 2, 8)["mIoU_box"][1]) == 1
    assert "1 clip of clips (4 frames)" in real.describe(2, 8)
    budget = dataclasses.replace(TINY, rates=TINY.rates[:1])
    units = [Unit("plain", "float", "float", (0,)), Unit("plain", "MinMax-EMA", "W8A8", (0,), own_rate=True)]
    results = run_plan(units, store, budget, real, progress=False)
    search, *experiments = sorted(results, key=lambda result: result["kind"] == "cell")
    assert (search["method"], search["setting"]) == ("MinMax-EMA", "W8A8")
    assert {e["method"]: len(e["counts"]["J&F"]) for e in experiments} == {"float": 1, "MinMax-EMA": 1}
    assert experiments[0]["metrics"].keys() >= {"J&F", "mIoU_box", "mIoU_box_frames"}
    with pytest.raises(CheckpointError, match="other data"):
        run_plan(units, store, budget, PROCEDURAL, progress=False)


def test_on_real_pictures_both_recipes_are_judged_against_the_strongest_rival(tmp_path):
    write_library(tmp_path / "train")
    write_validation(tmp_path / "validation")
    write_clip(tmp_path / "test" / "clips")
    levels = {"QSAM2": 78, "QSAM2, part by part": 80, "LSQ": 65, "LSQ, equalized and distilled": 75}
    results = Results(make_experiment("plain", method, "W2A4", level=level) for method, level in levels.items())
    report = markdown(results, TINY, environment(), "command", RealData(str(tmp_path)), {}, {})
    end_to_end, part_by_part = report.split("## Targets for QSAM2")[1:]
    rival = "(LSQ, equalized and distilled) | no |"
    assert f"| plain | W2A4 | J&F | 9.7 over the best rival | +3.0 [+3.0, +3.0] {rival}" in end_to_end
    assert f"| plain | W2A4 | J&F | 9.7 over the best rival | +5.0 [+5.0, +5.0] {rival}" in part_by_part


def test_what_real_pictures_lack_is_said_first(tmp_path):
    write_library(tmp_path / "train")
    write_validation(tmp_path / "validation")
    with pytest.raises(DataError, match="no dataset to test on"):
        RealData(str(tmp_path)).check()


@pytest.mark.slow
def test_a_cell_repeats_to_the_bit(monkeypatch):
    monkeypatch.setattr(data, "QAT_STAGES", (Stage(0, ((BatchKind(1, 2, 1), 1.0),)),))
    monkeypatch.setattr(data, "_procedural_batches", data._procedural_batches.__wrapped__)  # drawn anew each time
    first, again = (Experiments("heavy-tailed", "LSQ", "W2A4", TINY).run(0, TINY.rates[0]) for _ in range(2))
    for cell in (first, again):
        del cell["seconds"]
    assert first == again


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
def test_variants_change_what_they_say():
    model = build_model("plain")
    images = calibration_images(2, 96)
    setting = parse_setting("W2")  # nothing is looked at but the weights

    def quantizer(name):
        # The search for the damping, of which nothing is looked at, would take most of the time.
        prepared = prepare_method(model, dataclasses.replace(METHODS[name], vrc=0.01), setting, images)
        return dict(quantized_layers(prepared))["image_encoder.trunk.blocks.3.mlp.layers.0"].weight_fake_quant

    usual = quantizer("VRC+LSC")
    fixed = quantizer("VRC+LSC, alpha fixed at 2")
    assert (fixed.alpha_bar == 2).all()
    assert not fixed.log_alpha.requires_grad
    assert usual.log_alpha.requires_grad
    assert quantizer("VRC+LSC, no momentum").momentum == 0
    assert quantizer("VRC+LSC, signed grid").grid == "symmetric"
    assert (quantizer("VRC+LSC, started by the weight's error").alpha_bar != usual.alpha_bar).any()


def test_frames_of_one_clip_count_as_one_video(monkeypatch):
    def sample(name, video):
        return ImageSample(np.zeros((4, 4, 3), np.uint8), np.ones((1, 4, 4), bool), name, video=video)

    samples = [sample("a, frame 0", "a"), sample("a, frame 3", "a"), sample("b, frame 1", "b"), sample("cat.jpg", None)]

    class Frames:
        protocol = PROCEDURAL.protocol

        def videos(self, *_):
            return []

        def pictures(self, *_):
            return {"mIoU_box_frames": ("box", samples)}

    tracked = SimpleNamespace(scores=SimpleNamespace(by_sequence=dict))
    monkeypatch.setattr(experiment, "evaluate_video", lambda *_, **__: tracked)
    scored = SimpleNamespace(ious=[[50.0], [70.0], [80.0], [90.0]])
    monkeypatch.setattr(experiment, "evaluate_image", lambda *_, **__: scored)
    found = score(build_model("plain"), "test", 1, 1, data=Frames())
    assert found.sums["mIoU_box_frames"] == [120.0, 80.0, 90.0]
    assert found.counts["mIoU_box_frames"] == [2, 1, 1]
