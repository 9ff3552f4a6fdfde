"""When a training step ends for the clipping ranges: after the optimizer's step, for all of its ranges at once.

Within a step the ranges hold still, whatever is called how often: frames, clicks, micro-batches, and the second forward
pass of activation checkpointing. torch tells the end of a step (a hook behind every optimizer's step); the optimizer's
own list of parameters, the same on every data-parallel rank, says whose. That list is also the layout of the one
collective of a step, so that ranks that called other layers, or called them more or less often, stay in step.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .pool import Pool
from .statistics import world_size

if TYPE_CHECKING:
    from .lsc_training import LSCTraining

logger = logging.getLogger(__name__)
_NOTHING = Pool(0.0, 0.0, 0.0, 0.0, 0.0)


class Step:
    """What an activation's quantizer keeps from the first call of a step to the first of the next.

    Attributes:
        base: Mean, deviation and extremes that the range is made of in this step; Python numbers or tensors.
        pool: What the calls of this step saw; None before there was one.
        started: What the range was started from, where this step's first call started it.
        ended: Whether the next call opens a new step. Until it does, recomputation finds the range here.
        thread: Which thread is training.
        outlived: How many steps of optimizers it has seen end without ending itself.
    """

    def __init__(self, base: tuple[Any, ...], started: Pool | None = None) -> None:
        self.base = base
        self.pool: Pool | None = None
        self.started = started
        self.ended = False
        self.outlived = 0
        self.thread = threading.get_ident()


class Register:
    """All living quantizers, by a number of their own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: weakref.WeakValueDictionary[int, LSCTraining] = weakref.WeakValueDictionary()
        self._next = 0

    def add(self, quantizer: LSCTraining) -> int:
        """Enter a quantizer, and give it its number."""
        with self._lock:
            self._next += 1
            self._living[self._next] = quantizer
            return self._next

    def __getitem__(self, number: int) -> LSCTraining:
        with self._lock:
            return self._living[number]

    def living(self) -> list[LSCTraining]:
        """All of them, in the order of their making."""
        with self._lock:
            return [quantizer for _, quantizer in sorted(self._living.items())]


REGISTER = Register()


@torch.no_grad()
def end_step(quantizers: Iterable[LSCTraining]) -> None:
    """End a step for some quantizers: merge what the ranks saw, and let every alpha_bar follow its alpha.

    Args:
        quantizers: In the same order on every data-parallel rank; a collective call where there are several.
    """
    quantizers = list(quantizers)
    activations = [quantizer for quantizer in quantizers if not quantizer.is_weight]
    if activations and world_size() > 1:
        _merge_ranks(activations)
    for quantizer in quantizers:
        quantizer.end_step()


def _merge_ranks(quantizers: list[LSCTraining]) -> None:
    """Let every rank's quantizers hold what all ranks saw in the step, in one collective."""
    rows = []
    for quantizer in quantizers:
        open_ = quantizer.step if quantizer.step is not None and not quantizer.step.ended else None
        pool, started = (None, None) if open_ is None else (open_.pool, open_.started)
        values = [*(pool or _NOTHING), *(started or _NOTHING), *(quantizer.statistics if open_ is None else open_.base)]
        values += [quantizer.log_alpha.detach(), quantizer.alpha_bar]
        device = quantizer.log_alpha.device
        rows.append(torch.cat([torch.as_tensor(v, dtype=torch.float64, device=device).reshape(1) for v in values]))
    local = torch.stack(rows)
    gathered = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(gathered, local)
    for quantizer, ranks in zip(quantizers, torch.stack(gathered, dim=1).tolist(), strict=True):
        starting = [rank for rank in ranks if rank[5] > 0]
        start = _joined([Pool(*rank[5:10]) for rank in starting])
        if start is not None:
            log_alpha, log_bar = (
                sum(values) / len(starting)
                for values in ([rank[14] for rank in starting], [math.log(rank[15]) for rank in starting])
            )
            quantizer.start_as(start.statistics(), log_alpha, math.exp(log_bar))
        if quantizer.follows:
            # Of the first rank, whose buffers DistributedDataParallel hands to the others in the middle of a step.
            base = tuple(ranks[0][10:14]) if start is None else start.statistics()
            quantizer.take(_joined([Pool(*rank[:5]) for rank in ranks]), base)


def _joined(pools: list[Pool]) -> Pool | None:
    joined = None
    for pool in pools:
        if pool.count > 0:
            joined = pool if joined is None else joined.joined(pool)
    return joined


# --- the optimizers' hooks -----------------------------------------------------------------------------------

_UNDER_WAY = threading.local()


@torch.compiler.disable
def _before_optimizer_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    under_way: list[int] = _UNDER_WAY.__dict__.setdefault("optimizers", [])
    if id(optimizer) in under_way:  # the step before was cut off by an error
        del under_way[under_way.index(id(optimizer)) :]
    under_way.append(id(optimizer))
    for quantizer in _learned_by(optimizer):
        quantizer.learned = True
        quantizer.drop_widening()


@torch.compiler.disable
def _after_optimizer_step(optimizer: torch.optim.Optimizer, *_: object) -> None:
    under_way: list[int] = _UNDER_WAY.__dict__.setdefault("optimizers", [])
    del under_way[under_way.index(id(optimizer)) if id(optimizer) in under_way else len(under_way) :]
    if under_way:  # an optimizer inside another, as ZeroRedundancyOptimizer's: the outer one knows all parameters
        return
    living = REGISTER.living()
    if not living:
        return
    end_step(_learned_by(optimizer))
    # A range that is not learned is in no optimizer's list; it follows the data of the thread that trains.
    thread = threading.get_ident()
    forgotten = []
    for quantizer in living:
        step = quantizer.step
        if step is None or step.ended or step.thread != thread:
            continue
        if not quantizer.log_alpha.requires_grad:
            quantizer.end_step()
        elif not quantizer.learned and quantizer.log_alpha.grad is not None:  # else its model was run, and not trained
            step.outlived += 1
            if step.outlived == 2:  # the first may be another model's
                forgotten.append(quantizer.who)
    if forgotten:
        logger.warning(
            "no optimizer has the learned ranges of %d input quantizers (first: %s), which stay as they are: give it "
            "range_parameters(model) too, or switch their requires_grad off for ranges that follow the data",
            len(forgotten),
            forgotten[0],
        )


def _learned_by(optimizer: torch.optim.Optimizer) -> list[LSCTraining]:
    """The quantizers whose ranges an optimizer has, in its order."""
    by_parameter = {id(quantizer.log_alpha): quantizer for quantizer in REGISTER.living()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [by_parameter[id(parameter)] for parameter in parameters if id(parameter) in by_parameter]


register_optimizer_step_pre_hook(_before_optimizer_step)
register_optimizer_step_post_hook(_after_optimizer_step)
