"""Every official size goes the whole way with randomly initialised weights.

SAM 2 differs from SAM 2.1 by flags that are the same in all of its sizes: its smallest stands for them. Weights of
SAM 2.1's smallest start from the outputs' error; those of the others from their own, which does not take minutes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sam2_runs import assert_identical, images, run_both

from qsam2_ao import build_official, convert_qsam2, coverage_report, load_qsam2, prepare_qsam2, save_qsam2
from qsam2_ao.models.official import OFFICIAL
from qsam2_ao.prepare import calibrate_activations
from qsam2_ao.reporting.size import model_size
from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage
from qsam2_ao.training.qat import train_qat

SIZE = 64


@pytest.mark.slow
@pytest.mark.usefixtures("small_searches")
@pytest.mark.parametrize("name", [name for name in OFFICIAL if name.startswith("sam2.1-")] + ["sam2-t"])
def test_prepare_train_convert_save_load(name: str, tmp_path: Path) -> None:
    model = build_official(name, image_size=SIZE)
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    if name == "sam2.1-t":
        prepared = prepare_qsam2(model, "w2a8", calibration_data=[photo], vrc=None, progress=False)
    else:
        prepared = prepare_qsam2(model, "w2a8")
        calibrate_activations(prepared, [photo], progress=False)
    clip = Stage(0, ((BatchKind(videos=1, frames=2, objects=1), 1.0),))
    batches = ProceduralBatches((clip,), size=(SIZE, SIZE), seed=1).stream(1)
    result = train_qat(prepared, steps=1, batches=batches, progress=False)
    assert np.isfinite(result.losses).all()

    converted = convert_qsam2(prepared)
    size = model_size(converted)
    assert size.packed_values > 0.9 * size.values
    assert coverage_report(converted).quantized_share > 0.9
    save_qsam2(converted, tmp_path / "model.safetensors")
    loaded = load_qsam2(tmp_path / "model.safetensors")
    batch = images(1, SIZE)
    with torch.no_grad():
        expected = run_both(prepared.eval(), batch)
        assert_identical(run_both(converted, batch), expected)
        assert_identical(run_both(loaded, batch), expected)
