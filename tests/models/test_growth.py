from __future__ import annotations

import pytest
import torch
from torch import nn
from training.model.sam2 import SAM2Train

from qsam2_ao.models.embedded import EMBEDDED_256_CONFIG, build_embedded, load_embedded, set_image_size
from qsam2_ao.models.growth import _sources, grow
from qsam2_ao.training.losses import TRAIN_OVERRIDES
from qsam2_ao.training.validation import quick_score


def test_channels_are_copied_in_pairs() -> None:
    assert _sources(4, 6).tolist() == [0, 1, 0, 1, 2, 3]
    assert _sources(4, 8).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert _sources(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="cannot grow 8"):
        _sources(8, 4)


def test_a_layer_twice_as_wide_computes_the_same() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    wide = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 2))
    x = torch.randn(5, 4)
    grow(narrow, wide, noise=0)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)
    grow(narrow, wide, noise=0.05)
    assert not torch.allclose(narrow(x), wide(x), atol=1e-5)


def test_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="differ"):
        grow(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.slow
def test_the_grown_model_does_what_the_small_one_does() -> None:
    small = load_embedded(SAM2Train, apply_postprocessing=False, **TRAIN_OVERRIDES)
    grown = build_embedded(SAM2Train, config=EMBEDDED_256_CONFIG, **TRAIN_OVERRIDES)
    grow(small, grown)
    set_image_size(grown, 96)
    before, after = quick_score(small, videos=2, num_frames=4), quick_score(grown, videos=2, num_frames=4)
    assert abs(before.jf - after.jf) < 4
    assert abs(before.box - after.box) < 4


def test_a_model_reads_pictures_of_the_size_it_is_set_to() -> None:
    model = build_embedded()
    built = build_embedded(image_size=128)
    set_image_size(model, 128)
    for name in ("image_size", "sam_image_embedding_size"):
        assert getattr(model, name) == getattr(built, name)
    for name in ("image_embedding_size", "input_image_size", "mask_input_size"):
        assert getattr(model.sam_prompt_encoder, name) == getattr(built.sam_prompt_encoder, name)
    with pytest.raises(ValueError, match="multiple of 32"):
        set_image_size(model, 100)
