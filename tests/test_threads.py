from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from qsam2_ao import threads
from qsam2_ao.threads import SMALL_PARAMETERS, deterministic_on_cpu, one_thread_if_small


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model_of(side: int | None = None, device: str = "cpu") -> nn.Module:
    model = nn.Linear(4, 4, device=device)
    if side is not None:
        model.image_size = side
    return model


def test_small_models_get_one_thread_inside_the_block_alone() -> None:
    for model in (model_of(), model_of(96), nn.Sequential(model_of(96))):
        with one_thread_if_small(model):
            assert torch.get_num_threads() == 1
            with one_thread_if_small(model):
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), one_thread_if_small(model_of()):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_models_with_many_parameters_or_large_images_keep_theirs() -> None:
    wrapped = nn.Module()
    wrapped.module = model_of(1024)  # as DistributedDataParallel does
    for model in (nn.Linear(SMALL_PARAMETERS, 1, device="meta"), model_of(1024), wrapped):
        with one_thread_if_small(model):
            assert torch.get_num_threads() == 2


def test_the_switch_goes_back_when_the_last_user_is_done() -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        torch.set_num_threads(2)
        with deterministic_on_cpu(model_of()):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with deterministic_on_cpu(model_of()):
        thread.start()
        inside.wait()
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.are_deterministic_algorithms_enabled()
    leave.set()
    thread.join()
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_is_left_alone_where_it_is_not_needed() -> None:
    with deterministic_on_cpu(model_of(device="meta")):
        assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    with deterministic_on_cpu(model_of()):
        assert not torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)  # the user's, which refuses what it cannot do
    try:
        with deterministic_on_cpu(model_of()):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.are_deterministic_algorithms_enabled()
        assert threads._Deterministic.users == 0
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gather_per_object_adds_up_in_one_order() -> None:
    """As SAM2Train takes the features of each object's frame."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 32, 24, 24, generator=generator, requires_grad=True)
    ids = torch.arange(2).repeat(32)
    weight = torch.randn(64, 32, 576, generator=generator).permute(2, 0, 1)

    def gradient(x: Tensor, dtype: torch.dtype) -> Tensor:
        with deterministic_on_cpu(nn.ParameterList([x])):
            rows = x.to(dtype).flatten(2).permute(2, 0, 1)
            return torch.autograd.grad((rows[:, ids] * weight.to(dtype)).sum(), x)[0]

    first = gradient(features, torch.float32)
    assert all(torch.equal(gradient(features, torch.float32), first) for _ in range(8))
    torch.testing.assert_close(first, gradient(features.detach().double().requires_grad_(), torch.float64).float())
