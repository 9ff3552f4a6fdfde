"""Pictures that need a model at hand: weights before and after VRC, ranges over training, masks side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...calibration import calibrate_qsam2
from ...data.types import VideoSequence
from ...evaluation.video import track_sequence
from ...predictors import as_video_predictor, eval_mode
from ...quantizers import LSCFakeQuantize
from ...recipe import fake_quantizers
from ...reporting.figures import save_figure
from ...reporting.overlay import draw_masks, save_picture, side_by_side
from ...training.qat import Rates
from .data import PROCEDURAL, BenchmarkData
from .experiment import Budget, Experiments, deployed, train_method
from .methods import FLOAT
from .models import WeightShape, build_model, weight_shapes
from .plan import MAIN_MODELS, REAL_MODELS
from .plots import ranges_over_training, weights_before_and_after
from .results import Results

_SHOWN = ("LSQ", "VRC+LSC", "QSAM2")
_SETTING, _SEED = "W2A4", 0


def illustrate_weights(
    folder: Path, budget: Budget, data: BenchmarkData = PROCEDURAL
) -> tuple[Path, dict[str, list[WeightShape]]]:
    """Plot the layer with the heaviest tails before and after VRC.

    Args:
        folder: Where ``weights.png`` goes.
        budget: For the number of calibration images.
        data: What is calibrated on.

    Returns:
        The plot's path, and the shapes of all weights by title.
    """
    plain, heavy = (build_model(name, data.model) for name in ("plain", "heavy-tailed"))
    images = data.calibration_images(budget.images, heavy.image_size)
    calibrated, _ = calibrate_qsam2(heavy, images, bits=2, batch_size=16, progress=False)
    models = {"plain": plain, "heavy-tailed": heavy, "heavy-tailed, after VRC": calibrated}
    shapes = {title: weight_shapes(model) for title, model in models.items()}
    linear = [s for s in shapes["heavy-tailed"] if heavy.get_submodule(s.layer).weight.dim() == 2]
    layer = max(linear, key=lambda shape: shape.kurtosis).layer
    weights = {title: model.get_submodule(layer).weight for title, model in models.items()}
    return save_figure(weights_before_and_after(layer, weights), folder / "weights.png"), shapes


def illustrate_training(
    folder: Path, budget: Budget, results: Results, data: BenchmarkData = PROCEDURAL
) -> dict[str, Path]:
    """Train some methods once more at 2 bits, as the benchmark did, and show their masks and LSC's ranges.

    Args:
        folder: Where ``masks.png`` and ``ranges.png`` go.
        budget: As the benchmark's.
        results: Its results, for the learning rates and a typical video; methods that were not run are left out.
        data: As the benchmark's.

    Returns:
        Name ("masks", "ranges") -> path; none where none of the methods was run.
    """
    outlying = outlying_model(data)
    video = data.videos("test", budget.videos, budget.frames)[typical_video(results, outlying)]
    masks: dict[str, NDArray[np.uint8]] = {"float": _track(build_model(outlying, data.model), video)}
    paths: dict[str, Path] = {}
    for method in _SHOWN:
        experiments = [
            experiment for experiment in results.experiments(outlying, method, _SETTING) if experiment["seed"] == _SEED
        ]
        if not experiments:
            continue
        run = Experiments(outlying, method, _SETTING, budget, data)
        model, record = run.start(), _RangeRecord()
        train_method(
            model,
            run.float_model,
            run.method,
            _SEED,
            budget.steps,
            Rates(**experiments[0]["rates"]),
            data=data,
            on_step=lambda _, model=model, record=record: record.add(model),
        )
        masks[method] = _track(deployed(model)[0], video)
        if method == "VRC+LSC":
            paths["ranges"] = save_figure(ranges_over_training(record.alphas, record.clips()), folder / "ranges.png")
    if len(masks) > 1:
        paths["masks"] = _side_by_side(video, masks, folder / "masks.png")
    return paths


def outlying_model(data: BenchmarkData) -> str:
    """The weight setting with outliers that is measured on such data."""
    return MAIN_MODELS[0] if data.name == PROCEDURAL.name else REAL_MODELS[-1]


def typical_video(results: Results, model: str = "heavy-tailed") -> int:
    """Number of the test video to show: of the half that the float model tracks better, the one on which the first of
    the shown methods loses the median.

    Args:
        results: The benchmark's; without these two methods in them it is the first video.
        model: Weight setting.
    """
    experiments = [results.experiments(model, *key) for key in ((FLOAT, FLOAT), (_SHOWN[0], _SETTING))]
    if not all(experiments):
        return 0
    counts = np.array(experiments[0][0]["counts"]["J&F"])
    reference, quantized = (np.array(found[0]["sums"]["J&F"]) / np.maximum(counts, 1) for found in experiments)
    well = np.flatnonzero((counts > 0) & (reference >= np.median(reference[counts > 0])))
    lost = (reference - quantized)[well]
    return int(well[np.argsort(lost, kind="stable")[len(well) // 2]])


def _track(model: nn.Module, video: VideoSequence) -> NDArray[np.uint8]:
    predictor = as_video_predictor(model)
    with eval_mode(predictor):
        return track_sequence(predictor, video)


def _side_by_side(video: VideoSequence, masks: dict[str, NDArray[np.uint8]], path: Path) -> Path:
    pictures, titles = [], []
    last = video.annotated[-1]
    for frame in (video.annotated[len(video.annotated) // 2], last):
        annotation = video.annotation(frame)
        assert annotation is not None
        for title, shown in {"truth": annotation.masks, **{name: ids[frame] for name, ids in masks.items()}}.items():
            pictures.append(draw_masks(np.asarray(video.frames[frame]), shown))
            titles.append(f"{title}, frame {frame}")
    return save_picture(side_by_side(pictures, titles, columns=1 + len(masks)), path)


class _RangeRecord:
    """Alpha and scale of a few quantizers after every step: the first, the middle and the last of either kind."""

    def __init__(self) -> None:
        self.alphas: dict[str, list[float]] = {}
        self.scales: dict[str, list[float]] = {}

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        found = [(name, q) for name, q in fake_quantizers(model) if isinstance(q, LSCFakeQuantize)]
        for is_weight in (True, False):
            kind = [(name, q) for name, q in found if q.is_weight == is_weight]
            for name, quantizer in (kind[0], kind[len(kind) // 2], kind[-1]) if kind else ():
                short = name.removesuffix(".weight_fake_quant")
                self.alphas.setdefault(short, []).append(float(quantizer.alpha_bar.mean()))
                self.scales.setdefault(short, []).append(float(quantizer.qparams()[0].mean()))

    def clips(self) -> dict[str, list[float]]:
        return {name: [value / values[0] for value in values] for name, values in self.scales.items()}
