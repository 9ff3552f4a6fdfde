"""What a test leaves in its process does not reach the next one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch


@pytest.mark.parametrize("turn", ["one test", "the next"])
def test_new_threads_have_as_many_of_torchs_threads_as_this_one(turn: str) -> None:
    """Sums of float32 depend on it, so that threads would not compute what this one does alone."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads(), turn
        pool.submit(torch.set_num_threads, torch.get_num_threads() + 1).result()
