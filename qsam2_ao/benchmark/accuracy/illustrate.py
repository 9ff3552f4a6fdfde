"""Pictures that need a model at hand: weights before and after VRC, ranges over training, masks side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...calibration import calibrate_qsam2
from ...data.procedural import Sequence, generate_sequence
from ...evaluation.video import track_sequence
from ...predictors import as_video_predictor, eval_mode
from ...quantizers import LSCFakeQuantize
from ...recipe import fake_quantizers
from ...reporting.figures import save_figure
from ...reporting.overlay import draw_masks, save_picture, side_by_side
from ...training.qat import Rates
from .experiment import Budget, Experiments, calibration_images, deployed, train_method
from .methods import FLOAT
from .models import WeightShape, build_model, weight_shapes
from .plots import ranges_over_training, weights_before_and_after
from .results import Results

_SHOWN = ("LSQ", "VRC+LSC", "QSAM2")
_MODEL, _SETTING, _SEED = "heavy-tailed", "W2A4", 0


def illustrate_weights(folder: Path, budget: Budget) -> tuple[Path, dict[str, list[WeightShape]]]:
    """Plot the layer with the heaviest tails before and after VRC.

    Args:
        folder: Where ``weights.png`` goes.
        budget: For the number of calibration images.

    Returns:
        The plot's path, and the shapes of all weights by title.
    """
    plain, heavy = build_model("plain"), build_model("heavy-tailed")
    images = calibration_images(budget.images, heavy.image_size)
    calibrated, _ = calibrate_qsam2(heavy, images, bits=2, batch_size=16, progress=False)
    models = {"plain": plain, "heavy-tailed": heavy, "heavy-tailed, after VRC": calibrated}
    shapes = {title: weight_shapes(model) for title, model in models.items()}
    linear = [s for s in shapes["heavy-tailed"] if heavy.get_submodule(s.layer).weight.dim() == 2]
    layer = max(linear, key=lambda shape: shape.kurtosis).layer
    weights = {title: model.get_submodule(layer).weight for title, model in models.items()}
    return save_figure(weights_before_and_after(layer, weights), folder / "weights.png"), shapes


def illustrate_training(folder: Path, budget: Budget, results: Results) -> dict[str, Path]:
    """Train some methods once more at 2 bits, as the benchmark did, and show their masks and LSC's ranges.

    Args:
        folder: Where ``masks.png`` and ``ranges.png`` go.
        budget: As the benchmark's.
        results: Its results, for the learning rates and a typical video; methods that were not run are left out.

    Returns:
        Name ("masks", "ranges") -> path; none where none of the methods was run.
    """
    video = generate_sequence("test", typical_video(results), num_frames=budget.frames)
    masks: dict[str, NDArray[np.uint8]] = {"float": _track(build_model(_MODEL), video)}
    paths: dict[str, Path] = {}
    for method in _SHOWN:
        experiments = [
            experiment for experiment in results.experiments(_MODEL, method, _SETTING) if experiment["seed"] == _SEED
        ]
        if not experiments:
            continue
        run = Experiments(_MODEL, method, _SETTING, budget)
        model, record = run.start(), _RangeRecord()
        train_method(
            model,
            run.float_model,
            run.method,
            _SEED,
            budget.steps,
            Rates(**experiments[0]["rates"]),
            on_step=lambda _, model=model, record=record: record.add(model),
        )
        masks[method] = _track(deployed(model)[0], video)
        if method == "VRC+LSC":
            paths["ranges"] = save_figure(ranges_over_training(record.alphas, record.clips()), folder / "ranges.png")
    if len(masks) > 1:
        paths["masks"] = _side_by_side(video, masks, folder / "masks.png")
    return paths


def typical_video(results: Results) -> int:
    """Number of the test video to show: of the half that the float model tracks better, the one on which the first of
    the shown methods loses the median.

    Args:
        results: The benchmark's; without these two methods in them it is the first video.
    """
    experiments = [results.experiments(_MODEL, *key) for key in ((FLOAT, FLOAT), (_SHOWN[0], _SETTING))]
    if not all(experiments):
        return 0
    counts = np.array(experiments[0][0]["counts"]["J&F"])
    reference, quantized = (np.array(found[0]["sums"]["J&F"]) / np.maximum(counts, 1) for found in experiments)
    well = np.flatnonzero((counts > 0) & (reference >= np.median(reference[counts > 0])))
    lost = (reference - quantized)[well]
    return int(well[np.argsort(lost, kind="stable")[len(well) // 2]])


def _track(model: nn.Module, video: Sequence) -> NDArray[np.uint8]:
    predictor = as_video_predictor(model)
    with eval_mode(predictor):
        return track_sequence(predictor, video)


def _side_by_side(video: Sequence, masks: dict[str, NDArray[np.uint8]], path: Path) -> Path:
    pictures, titles = [], []
    for frame in (len(video.frames) // 2, len(video.frames) - 1):
        for title, ids in {"truth": video.masks, **masks}.items():
            pictures.append(draw_masks(video.frames[frame], ids[frame]))
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
