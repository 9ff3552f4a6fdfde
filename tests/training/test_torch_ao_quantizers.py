"""torch.ao's own fake-quantizers, whose observers look on in eval mode too, in this package's training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sam2.modeling.sam2_base import SAM2Base
from sam2_runs import photos
from torch import Tensor, nn
from torch.ao.quantization import get_default_qat_qconfig
from training_runs import assert_equal_states

from qsam2_ao import build_embedded, prepare_qsam2
from qsam2_ao.training.freezing import frozen
from qsam2_ao.training.loop import train
from qsam2_ao.training.selection import Selection

RANGE = "obj_ptr_proj.input_quantizer_0.activation_post_process.max_val"


def prepared(calibrated: bool = True) -> SAM2Base:
    data = photos()[:1] if calibrated else None
    recipe = {"obj_ptr_proj": get_default_qat_qconfig("x86")}
    return prepare_qsam2(build_embedded(), recipe, calibration_data=data, progress=False)


def batches(model: Any, *sizes: float) -> list[Tensor]:
    return [size * torch.randn(8, model.hidden_dim, generator=torch.Generator().manual_seed(0)) for size in sizes]


def through(model: Any, batch: Tensor) -> Tensor:
    output: Tensor = model.obj_ptr_proj(batch)
    return output


def square(output: Tensor, batch: Tensor) -> Tensor:
    return output.square().mean()


@pytest.mark.parametrize("calibrated", [True, False])
def test_ranges_that_begin_at_infinity_are_averaged_and_resumed(calibrated: bool, tmp_path: Path) -> None:
    model = prepared(calibrated)
    data = batches(model, 1.0, 3.0, 2.0)
    settings: dict[str, Any] = {"forward": through, "ema": 0.9, "steps": 3, "progress": False}
    result = train(model, lambda first: data[first:], square, checkpoint=tmp_path / "run.pt", **settings)
    assert result.average is not None
    averaged, state = result.average[RANGE], model.state_dict()[RANGE]
    assert torch.equal(averaged, state)
    assert averaged.isfinite().all()
    fresh = prepared(calibrated)
    again = train(fresh, lambda first: data[first:], square, checkpoint=tmp_path / "run.pt", **settings)
    assert again.average is not None
    assert_equal_states(again.average, result.average)


def test_they_hold_still_in_a_frozen_region() -> None:
    model: nn.Module = prepared().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with frozen(model, ("obj_ptr_proj",)):
        through(model, *batches(model, 100.0))
    assert_equal_states(model.state_dict(), before)
    through(model, *batches(model, 100.0))
    assert model.state_dict()[RANGE] > before[RANGE]


def test_held_out_batches_judge_alike_in_any_order() -> None:
    model = prepared()
    data = batches(model, 1.0, 20.0)
    losses = [Selection(model, order, square, through, every=1, steps=1).best.loss for order in (data, data[::-1])]
    assert losses[0] == losses[1]
