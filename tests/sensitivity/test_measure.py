"""Measuring on the trained embedded model: plausible, repeatable, resumable, and the model stays as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qsam2_ao.data.procedural import generate_split
from qsam2_ao.errors import GraphTraceError, QConfigError
from qsam2_ao.evaluation import evaluate_image, evaluate_video, image_samples
from qsam2_ao.sensitivity import LayerSensitivity, measure_sensitivity
from qsam2_ao.sensitivity.layers import quantized_layer

LAYERS = [
    "obj_ptr_tpos_proj",
    "memory_attention.layers.0.linear1",
    "image_encoder.trunk.patch_embed.proj",
    "image_encoder.trunk.blocks.1.attn.qkv",
    "sam_mask_decoder.conv_s0",
]


def measure(model: Any, images: list[Any], **options: Any):
    return measure_sensitivity(model, images, layers=LAYERS, progress=False, **options)


@pytest.fixture(scope="module")
def measured(model: Any, images: list[Any]):
    return measure(model, images)


@pytest.mark.slow
def test_records_in_the_order_of_the_model_with_losses_that_fall_with_bits(measured):
    assert [layer.name for layer in measured.layers] == [LAYERS[2], LAYERS[3], LAYERS[1], LAYERS[4], LAYERS[0]]
    assert [(r.layer, r.bits) for r in measured.records] == [
        (layer.name, bits) for layer in measured.layers for bits in (2, 3, 4, 8)
    ]
    # The first layer in the list hardly matters at any bit-width.
    for name in LAYERS[1:]:
        losses = [measured.loss(name, bits) for bits in measured.bits]
        assert min(losses[:3]) > losses[3] > 0
    totals = [sum(measured.loss(name, bits) for name in LAYERS) for bits in measured.bits]
    assert totals[0] > max(totals[1:])
    assert measured.loss(LAYERS[2], 8) < 1e-3
    assert all(r.loss == pytest.approx(sum(r.figures.values()) / len(r.figures)) for r in measured.records)
    with pytest.raises(KeyError):
        measured.loss("neck", 2)


@pytest.mark.slow
def test_the_same_on_every_run_and_the_model_unchanged(model: Any, images: list[Any], measured):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = measure(model, images)
    assert again == measured
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert measure(model, images, seed=1, bits=[2]).records[0].loss != measured.records[0].loss


@pytest.mark.slow
def test_interrupted_it_goes_on_after_the_last_layer(model: Any, images: list[Any], measured):
    kept: dict[str, str] = {}

    def remember(limit: int) -> Callable[[str, Callable[[], Any]], Any]:
        def result(name: str, compute: Callable[[], Any]) -> Any:
            if name not in kept:
                if len(kept) == limit:
                    raise KeyboardInterrupt
                kept[name] = json.dumps(compute())
            return json.loads(kept[name])

        return result

    with pytest.raises(KeyboardInterrupt):
        measure(model, images, remember=remember(2))
    assert len(kept) == 2
    finished = dict(kept)
    assert measure(model, images, remember=remember(100)) == measured
    assert finished.items() <= kept.items()
    kept |= {name: json.dumps([[7.0, {}]] * 4) for name in finished}
    reread = measure(model, images, remember=remember(100))
    assert {r.layer for r in reread.records if r.loss == 7.0} == set(finished), "finished layers were measured again"


def test_as_json_with_decibels(measured):
    values = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert values["metric"] == "sqnr"
    first = values["records"][0]
    assert first["sqnr_db"] == pytest.approx(-10 * torch.log10(torch.tensor(first["loss"])).item(), abs=1e-3)
    assert first["bytes"] == LayerSensitivity(**{k: v for k, v in first.items() if k != "sqnr_db"}).bytes


@pytest.mark.slow
def test_options_reach_the_weights(model: Any, images: list[Any]):
    layer = ["image_encoder.trunk.blocks.1.mlp.layers.0"]

    def loss(**options: Any) -> float:
        return measure_sensitivity(model, images, bits=[2], layers=layer, progress=False, **options).records[0].loss

    assert len({loss(), loss(vrc=0.05), loss(vrc=None), loss(rounding="gptq")}) == 4
    assert loss(vrc_regions=("mask_decoder",)) == loss(vrc=None)


def test_jf_is_what_evaluating_the_changed_model_gives(model: Any, images: list[Any]):
    videos = list(generate_split("val", 2, num_frames=3))
    layer = "memory_encoder.mask_downsampler.encoder.6"
    found = measure_sensitivity(model, images, layers=[layer], bits=[2], metric="jf", sequences=videos, progress=False)
    changed = copy.deepcopy(model)
    changed.set_submodule(layer, quantized_layer(layer, model.get_submodule(layer), 2))
    samples = image_samples(videos)
    scores = [
        {"jf": evaluate_video(of, videos).jf, "miou": evaluate_image(of, samples, prompt="box").miou}
        for of in (model, changed)
    ]
    assert found.records[0].figures == scores[1]
    assert found.loss(layer, 2) == pytest.approx(sum(scores[0][k] - scores[1][k] for k in scores[0]) / 2)
    assert scores[0] != scores[1]
    assert "sqnr_db" not in found.to_dict()["records"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": [1]}, "bits must be among 2 to 8"),
        ({"bits": []}, "bits must be among 2 to 8"),
        ({"layers": ["absent"]}, "no quantizable layer 'absent'"),
        ({"layers": []}, "no layers to measure"),
        ({"metric": "psnr"}, "unknown metric 'psnr'"),
        ({"metric": "jf"}, "needs videos"),
        ({"layers": LAYERS[:1], "rounding": "up"}, "unknown rounding 'up'"),
    ],
)
def test_bad_settings(model: Any, images: list[Any], options: dict[str, Any], message: str):
    with pytest.raises(QConfigError, match=message):
        measure_sensitivity(model, images, progress=False, **options)


def test_no_sam2(images: list[Any]):
    with pytest.raises(GraphTraceError, match="expected a SAM2 model"):
        measure_sensitivity(torch.nn.Linear(2, 2), images)  # type: ignore[arg-type]
