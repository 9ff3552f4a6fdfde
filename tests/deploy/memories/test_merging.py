from __future__ import annotations

import torch
from torch import nn

from qsam2_ao.deploy.memories.merging import FewerMemories, merge_similar


def test_the_most_similar_become_their_mean_at_the_newer_ones_place() -> None:
    one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    memories = [x.expand(3, 1, 2) for x in (one, other, 3 * one, 5 * one)]
    positions = [torch.full((3, 1, 2), float(i)) for i in range(4)]
    merged, places = merge_similar(memories, positions, 2)
    assert torch.equal(merged[0], memories[1])
    assert torch.allclose(merged[1], 3 * one.expand(3, 1, 2))  # of 1, 3 and 5
    assert [float(p[0, 0, 0]) for p in places] == [1, 3]
    assert len(memories) == 4


def test_prompted_frames_and_pointers_stay() -> None:
    memory, tokens = torch.randn(5 * 4 + 3, 2, 8), 4
    ages = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0]).repeat_interleave(tokens)
    position = torch.cat([ages, torch.zeros(3)])[:, None, None].expand(-1, 2, 8)
    given = {"curr": [torch.randn(tokens, 2, 16)], "memory": memory, "memory_pos": position, "num_obj_ptr_tokens": 3}
    for merge in (True, False):
        found = FewerMemories(1, merge)(nn.Identity(), (), given)
        assert found is not None
        assert torch.equal(found[1]["memory"][: 2 * tokens], memory[: 2 * tokens])
        assert torch.equal(found[1]["memory"][-3:], memory[-3:])
        assert torch.equal(found[1]["memory_pos"][2 * tokens : 3 * tokens], position[4 * tokens : 5 * tokens])
        assert found[1]["memory"].shape[0] == 3 * tokens + 3
    assert torch.equal(found[1]["memory"][2 * tokens : 3 * tokens], memory[4 * tokens : 5 * tokens])
    assert FewerMemories(3, True)(nn.Identity(), (), given) is None
