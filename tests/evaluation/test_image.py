from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sam2.sam2_image_predictor import SAM2ImagePredictor

from qsam2_ao.data.procedural import generate_split
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation import ImageSample, evaluate_image, image_samples, mask_iou
from qsam2_ao.evaluation.image import predict_objects


@pytest.fixture(scope="module")
def samples() -> list[ImageSample]:
    return image_samples(generate_split("test", 2, num_frames=3))


def test_samples_are_frames_with_their_visible_objects() -> None:
    sequences = list(generate_split("test", 3, num_frames=4))
    samples = image_samples(sequences, per_sequence=2, seed=5)
    assert len(samples) == 6
    for sample in samples:
        name, t = sample.name.split(", frame ")
        assert sample.video == name
        sequence = next(s for s in sequences if s.name == name)
        assert np.array_equal(sample.image, sequence.frames[int(t)])
        assert all((sequence.masks[int(t)][mask] > 0).all() for mask in sample.masks)
        assert (sample.masks.sum((1, 2)) >= 16).all()
    assert len({sample.name for sample in samples}) == 6
    again = image_samples(sequences, per_sequence=2, seed=5)
    assert [sample.name for sample in again] == [sample.name for sample in samples]
    seeds = {tuple(sample.name for sample in image_samples(sequences, seed=seed)) for seed in range(8)}
    assert len(seeds) > 1
    assert len(image_samples(sequences[:1], per_sequence=99)) == 4
    assert image_samples(sequences, min_area=10**6) == []


def test_pixels_of_void_do_not_count(predictor: Any) -> None:
    [sequence] = generate_split("test", 1, num_frames=1)
    masks = np.where(sequence.masks == 2, 255, sequence.masks)
    marked = replace(sequence, masks=masks, object_ids=tuple(i for i in sequence.object_ids if i != 2))
    [sample] = image_samples([marked])
    first, *others = marked.object_ids
    [without] = image_samples([marked], ignore=first)
    assert len(without.masks) == len(sample.masks) - 1 == len(others)
    frame = int(without.name.rsplit(" ", 1)[1])
    assert without.void is not None
    assert without.void[marked.annotation(frame).masks[first]].all()
    assert sample.void is not None
    assert np.array_equal(sample.void, sequence.masks[0] == 2)
    predictor_of_images = SAM2ImagePredictor(predictor)
    predictor_of_images.set_image(sample.image)
    predicted = predict_objects(predictor_of_images, sample.masks, "box")
    expected = mask_iou(predicted & ~sample.void, sample.masks)
    assert evaluate_image(predictor, [sample]).miou == pytest.approx(100 * expected.mean())
    assert (mask_iou(predicted, sample.masks) != expected).any(), "the model's masks reach into void"
    # Nor do those that an object has, too, as in data sets whose masks overlap.
    half = np.zeros_like(sample.void)
    half[: len(half) // 2] = True
    shared = ImageSample(sample.image, sample.masks, void=half)
    expected = mask_iou(predicted & ~half, sample.masks & ~half)
    assert evaluate_image(predictor, [shared]).miou == pytest.approx(100 * expected.mean())
    with pytest.raises(DataError, match="ignore must be a label"):
        image_samples([marked], ignore=0)
    with pytest.raises(DataError, match="void is bool"):
        ImageSample(sample.image, sample.masks, void=sample.void[1:])


@pytest.mark.parametrize("prompt", ["box", "click", "3-click"])
def test_scores_are_the_mean_over_objects(predictor: Any, samples: list[ImageSample], prompt: Any) -> None:
    scores = evaluate_image(predictor, samples, prompt=prompt)
    image_predictor, ious = SAM2ImagePredictor(predictor), []
    for sample in samples:
        image_predictor.set_image(sample.image)
        predicted = predict_objects(image_predictor, sample.masks, prompt)
        assert predicted.shape == sample.masks.shape
        ious += mask_iou(predicted, sample.masks).tolist()
    assert scores.miou == pytest.approx(100 * np.mean(ious))
    assert (scores.num_images, scores.num_objects) == (2, len(ious))
    assert json.loads(json.dumps(scores.to_dict()))["prompt"] == prompt
    assert evaluate_image(predictor, samples, prompt=prompt) == scores


def test_prompting_together_equals_one_by_one(predictor: Any, samples: list[ImageSample]) -> None:
    image_predictor = SAM2ImagePredictor(predictor)
    image_predictor.set_image(samples[0].image)
    for prompt in ("box", "click", "3-click"):
        together = predict_objects(image_predictor, samples[0].masks, prompt)  # type: ignore[arg-type]
        for mask, expected in zip(samples[0].masks, together, strict=True):
            alone = predict_objects(image_predictor, mask[None], prompt)[0]  # type: ignore[arg-type]
            # Batched matrix products round differently.
            assert (alone != expected).mean() < 0.01


@pytest.mark.parametrize("prompt", ["box", "3-click"])
def test_many_objects_do_not_share_one_pass(
    predictor: Any, samples: list[ImageSample], monkeypatch: pytest.MonkeyPatch, prompt: Any
) -> None:
    image_predictor = SAM2ImagePredictor(predictor)
    image_predictor.set_image(samples[0].image)
    masks = np.concatenate([samples[0].masks] * 20)[:19]
    sizes: list[int] = []
    original = SAM2ImagePredictor.predict

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        sizes.append(answer[0].size // masks[0].size)
        return answer

    monkeypatch.setattr(SAM2ImagePredictor, "predict", spy)
    predicted = predict_objects(image_predictor, masks, prompt)
    assert predicted.shape == masks.shape
    assert max(sizes) <= 16 * 3
    few = len(samples[0].masks)
    for first in range(0, 19, few):
        rest = predicted[first : first + few]
        assert (rest != predicted[: len(rest)]).mean() < 0.01


def test_prompts_are_where_the_object_is(
    predictor: Any, samples: list[ImageSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_predictor = SAM2ImagePredictor(predictor)
    image_predictor.set_image(samples[0].image)
    asked: list[dict[str, Any]] = []
    original = SAM2ImagePredictor.predict

    def spy(self: Any, point_coords: Any = None, point_labels: Any = None, **kwargs: Any) -> Any:
        asked.append({"points": point_coords, "labels": point_labels, **kwargs})
        return original(self, point_coords, point_labels, **kwargs)

    monkeypatch.setattr(SAM2ImagePredictor, "predict", spy)
    masks = samples[0].masks
    predict_objects(image_predictor, masks, "box")
    for box, mask in zip(asked[0]["box"], masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    predict_objects(image_predictor, masks, "3-click")
    clicks = asked[1:]
    assert [ask["points"].shape for ask in clicks] == [(len(masks), n, 2) for n in (1, 2, 3)]
    assert [ask["multimask_output"] for ask in clicks] == [True, False, False]
    for (x, y), label, mask in zip(clicks[0]["points"][:, 0].astype(int), clicks[0]["labels"], masks, strict=True):
        assert label == 1
        assert mask[y, x]
    for ask in clicks[1:]:
        for points, labels, mask in zip(ask["points"].astype(int), ask["labels"], masks, strict=True):
            x, y = points[-1]
            assert mask[y, x] == bool(labels[-1])


def test_mode_is_restored(predictor: Any, samples: list[ImageSample]) -> None:
    expected = evaluate_image(predictor, samples)
    predictor.train()
    try:
        assert evaluate_image(predictor, samples) == expected
        assert predictor.image_encoder.training
    finally:
        predictor.eval()


def test_bad_input_is_named(predictor: Any, samples: list[ImageSample]) -> None:
    with pytest.raises(DataError, match="no samples"):
        evaluate_image(predictor, [])
    with pytest.raises(DataError, match="prompt must be one of box, click, 3-click, 5-click, got 'mask'"):
        evaluate_image(predictor, samples, prompt="mask")  # type: ignore[arg-type]
    image, masks = samples[0].image, samples[0].masks
    with pytest.raises(DataError, match="cat: the image is float64"):
        ImageSample(image / 255, masks, "cat")
    with pytest.raises(DataError, match="cat: the masks are uint8"):
        ImageSample(image, masks.astype(np.uint8), "cat")
    with pytest.raises(DataError, match="cat: a mask is empty"):
        ImageSample(image, masks & False, "cat")
    assert torch.is_grad_enabled()
