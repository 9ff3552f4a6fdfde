"""The error of a model's outputs: what it sees, against outputs recorded independently, and that keeping is exact."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from qsam2_ao.calibration import exercise, load_images
from qsam2_ao.calibration.images import images_at_once
from qsam2_ao.errors import NonFiniteError
from qsam2_ao.sensitivity.outputs import OutputError

OUTPUTS = {
    *(f"image features {k}" for k in range(3)),
    *("conditioned features", "masks", "mask qualities", "object scores", "memory features", "object pointers"),
}


@pytest.fixture
def changed(model: Any) -> Any:
    return copy.deepcopy(model)


def shake(layer: Any, by: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.add_(by * layer.weight.std() * torch.randn(layer.weight.shape, generator=generator))


def test_an_unchanged_model_has_no_error(changed: Any, images: list[Any]):
    error = OutputError(changed, load_images(images))
    for encoder_changed in (True, False):
        assert error.measure(encoder_changed=encoder_changed) == dict.fromkeys(OUTPUTS, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "touched"),
    [
        ("image_encoder.trunk.blocks.0.mlp.layers.0", OUTPUTS),
        ("memory_attention.layers.0.linear1", OUTPUTS - {f"image features {k}" for k in range(3)}),
        ("sam_mask_decoder.iou_prediction_head.layers.1", {"mask qualities"}),
        ("sam_mask_decoder.pred_obj_score_head.layers.1", {"object scores"}),
        ("obj_ptr_proj.layers.1", {"object pointers", "conditioned features"}),
        ("obj_ptr_tpos_proj", {"conditioned features"}),
        ("memory_encoder.out_proj", {"memory features", "conditioned features", "masks"}),
    ],
)
def test_layers_of_every_region_show_in_the_outputs_behind_them(
    changed: Any, images: list[Any], layer: str, touched: set[str]
):
    module = changed.get_submodule(layer)
    error = OutputError(changed, load_images(images))
    shake(module)
    errors = error.measure(encoder_changed=layer.startswith("image_encoder"))
    assert all(errors[name] > 0 for name in touched), errors
    assert all(errors[f"image features {k}"] == 0 for k in range(3)) or layer.startswith("image_encoder")


def test_the_error_is_that_of_outputs_recorded_independently(model: Any, changed: Any, images: list[Any]):
    """At this size nothing is left out of the sample of the object scores and pointers."""

    def pointers(of: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        hook = of.obj_ptr_proj.register_forward_hook(lambda *given: seen.append(given[2].double()))
        exercise(of, load_images(images), batch_size=images_at_once(of))
        hook.remove()
        return torch.cat(seen)

    error = OutputError(changed, load_images(images))
    shake(changed.memory_encoder.out_proj)
    before, now = pointers(model), pointers(changed)
    expected = float((now - before).square().sum() / before.square().sum())
    assert error.measure(encoder_changed=False)["object pointers"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("max_kept_bytes", [0, 400_000, 1 << 30])
def test_kept_features_give_what_computed_ones_give(changed: Any, images: list[Any], max_kept_bytes: int):
    error = OutputError(changed, load_images(images), max_kept_bytes=max_kept_bytes)
    shake(changed.memory_attention.layers[0].linear1)
    assert error.measure(encoder_changed=False) == error.measure(encoder_changed=True)


@pytest.mark.slow
def test_outputs_that_are_not_finite_are_named(changed: Any, images: list[Any]):
    error = OutputError(changed, load_images(images))
    with torch.no_grad():
        changed.obj_ptr_proj.layers[2].bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        error.measure(encoder_changed=False)
