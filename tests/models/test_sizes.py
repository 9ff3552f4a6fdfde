"""Which model a state dict is of."""

from __future__ import annotations

import pytest
import torch

from qsam2_ao.models.embedded import EMBEDDED_CONFIG, build_embedded
from qsam2_ao.models.official import OFFICIAL
from qsam2_ao.models.sizes import image_part_only, in_words, recognise


@pytest.mark.parametrize("name", ["sam2-t", "sam2.1-t", pytest.param("sam2.1-l", marks=pytest.mark.slow)])
def test_official_sizes(name: str) -> None:
    state = official_shapes(name)
    assert recognise(state) == name
    assert not image_part_only(state)
    images = {key: value for key, value in state.items() if key.startswith(("image_encoder", "sam_"))}
    assert image_part_only(images)
    assert recognise(images) == f"sam2.1{name[-2:]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_every_official_size(name: str) -> None:
    assert recognise(official_shapes(name)) == name


def official_shapes(name: str) -> dict[str, torch.Tensor]:
    from hydra import compose
    from hydra.utils import instantiate

    from qsam2_ao.compat.registration import meta_parameters

    with meta_parameters():
        return instantiate(compose(OFFICIAL[name]).model, _recursive_=True).state_dict()


def test_the_embedded_model_and_unknown_ones() -> None:
    state = build_embedded().state_dict()
    assert recognise(state) == str(EMBEDDED_CONFIG)
    fewer = {name: value for name, value in state.items() if ".blocks.6." not in name}
    assert recognise(fewer) is None
    assert in_words(fewer) == "a SAM2 of 32 channels and 6 blocks"
    assert recognise({}) is None
    assert in_words({"image_encoder.trunk.patch_embed.proj.weight": "text"}) == "a SAM2 of 0 channels and 0 blocks"  # type: ignore[dict-item]
