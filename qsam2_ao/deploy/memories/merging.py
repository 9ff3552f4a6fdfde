"""Fewer memories for memory attention to read: the most similar ones merged, or the oldest left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ARGUMENTS = ("curr", "memory", "curr_pos", "memory_pos", "num_obj_ptr_tokens")


class FewerMemories:
    """A pre-hook of memory attention. Memories of prompted frames, and object pointers, stay as they are.

    Args:
        frames: Memories of other frames that remain.
        merge: Merge the two that are the most similar until so many remain, as Mix-QSAM2 (AAAI 2026) proposes; else
            leave out the oldest.
    """

    of_part = True

    def __init__(self, frames: int, merge: bool) -> None:
        self.frames, self.merge = frames, merge

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change the arguments of a call."""
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
        current = given["curr"][0] if isinstance(given["curr"], (list, tuple)) else given["curr"]
        memory, position = given["memory"], given["memory_pos"]
        rest, tokens = given.get("num_obj_ptr_tokens", 0), current.shape[0]
        count, odd = divmod(memory.shape[0] - rest, tokens)
        if odd or not count:  # the first frame's token that stands for no memory
            return None
        spatial = count * tokens
        memories, positions = (list(t[:spatial].unflatten(0, (count, tokens))) for t in (memory, position))
        prompted = next((i for i in range(count) if not torch.equal(positions[i], positions[0])), count)
        if count - prompted <= self.frames:
            return None
        if self.merge:
            kept = merge_similar(memories[prompted:], positions[prompted:], self.frames)
        else:
            kept = memories[count - self.frames :], positions[count - self.frames :]
        given["memory"] = torch.cat([*memories[:prompted], *kept[0], memory[spatial:]])
        given["memory_pos"] = torch.cat([*positions[:prompted], *kept[1], position[spatial:]])
        return (), given


def merge_similar(memories: list[Tensor], positions: list[Tensor], count: int) -> tuple[list[Tensor], list[Tensor]]:
    """Average the two most similar memories until ``count`` remain.

    Similarity is the mean cosine over places; an average weighs the frames in it equally, and has the position in time
    of the newer one.

    Args:
        memories: From the oldest to the newest, ``[tokens, B, C]`` each.
        positions: Their position encodings, likewise.
        count: How many remain, 1 or more.

    Returns:
        What remains, in the same order.

    Example:
        >>> old, new = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
        >>> merge_similar([old, old, new], [old, old, new], 2)[0][0]
        tensor([[[1., 0.]]])
    """
    memories, positions, weights = list(memories), list(positions), [1] * len(memories)
    unit = [nn.functional.normalize(m.float(), dim=-1).flatten() for m in memories]
    while len(memories) > count:
        stacked = torch.stack(unit)
        similar = stacked @ stacked.T
        similar.masked_fill_(torch.ones_like(similar, dtype=torch.bool).triu(), -torch.inf)
        newer, older = divmod(int(similar.argmax()), len(unit))
        total = weights[newer] + weights[older]
        share = weights[newer] / total
        memories[newer] = torch.lerp(memories[older].float(), memories[newer].float(), share).to(memories[newer].dtype)
        unit[newer] = nn.functional.normalize(memories[newer].float(), dim=-1).flatten()
        weights[newer] = total
        for values in (memories, positions, weights, unit):
            del values[older]  # type: ignore[attr-defined]
    return memories, positions
