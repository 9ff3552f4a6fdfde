from __future__ import annotations

from functools import partial

import pytest
import torch
from threads import at_once, during
from torch import nn

from qsam2_ao.compat.random import OwnGenerator
from qsam2_ao.models.config import build_from_config, model_config
from qsam2_ao.models.embedded import build_embedded


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(3),
        lambda: torch.rand(3),
        lambda: torch.randint(9, (5,)),
        lambda: torch.randint(3, 9, (5,)),
        lambda: torch.randperm(9),
        lambda: torch.empty(9).normal_(),
        lambda: torch.bernoulli(torch.full((9,), 0.5)),
        lambda: nn.init.trunc_normal_(torch.empty(9)),
        lambda: nn.functional.dropout(torch.ones(9)),
        lambda: nn.Conv2d(2, 2, 3).weight.detach(),
        lambda: torch.multinomial(torch.ones(9), 3),
    ],
)
def test_draws_what_the_global_generator_would_and_leaves_it(draw: object) -> None:
    assert callable(draw)
    torch.manual_seed(3)
    expected = draw()
    before = torch.get_rng_state()
    with OwnGenerator(3):
        assert torch.equal(draw(), expected)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    with OwnGenerator():
        assert torch.equal(draw(), expected)


def test_threads_build_what_they_would_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([value.flatten() for value in build_embedded(seed=seed).state_dict().values()])

    alone = [weights(seed) for seed in (0, 1, 2)]
    for mine, expected in zip(at_once(*(partial(weights, seed) for seed in (0, 1, 2))), alone, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.slow
def test_other_threads_go_on_drawing_their_numbers() -> None:
    config = model_config(build_embedded())

    def build() -> None:
        for _ in range(3):
            build_from_config(config, meta=True)
            build_embedded()

    torch.manual_seed(0)
    mine: list[float] = []
    during(build, lambda: mine.append(float(torch.rand(()))))
    torch.manual_seed(0)
    assert mine == [float(torch.rand(())) for _ in mine]
