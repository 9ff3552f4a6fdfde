"""SAM2's trainer, with checkpoints that are written whole and resumed to the bit, and on the CPU too."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch.distributed as dist
from training.trainer import Trainer, unwrap_ddp_if_wrapped
from training.utils.train_utils import MemMeter

from ...compat.rebind import rebound
from ...errors import QConfigError
from ...files import save_torch
from ...stage import stage_of
from ...threads import deterministic_on_cpu, one_thread_if_small
from .random_state import random_state, set_random_state
from .record import ENTRY, read_plain


class _NoMemory(MemMeter):
    """The meter of a GPU's memory where there is none: SAM2's own fails in a PyTorch without CUDA."""

    def update(self, n: int = 1, reset_peak_usage: bool = True) -> None:
        """Nothing to measure."""


class QATTrainer(Trainer):
    """SAM2's ``Trainer`` with three additions.

    Its checkpoints also hold the random state of each rank, from which a resumed training goes on as if it had not been
    interrupted, and the record of the quantization for ``qsam2 convert``; and they are never absent while a new one is
    written. On the CPU it trains in float32.

    Args:
        accelerator: "cuda" or "cpu".
        optim: As for ``Trainer``; without autocast on the CPU.
        **settings: As for ``Trainer``.

    Raises:
        QConfigError: Autocast is asked for on the CPU, where SAM2's trainer has none.
    """

    def __init__(self, *, accelerator: str = "cuda", optim: Mapping[str, Any] | None = None, **settings: Any) -> None:
        if accelerator == "cpu" and optim and (optim.get("amp") or {}).get("enabled"):
            raise QConfigError(
                "trainer.optim.amp.enabled is true on the CPU, where SAM2's trainer has no autocast; set it to false"
            )
        self._random: list[dict[str, Any]] | None = None
        super().__init__(accelerator=accelerator, optim=optim, **settings)

    def run(self) -> None:
        """Train and validate as the config says, going on exactly where a checkpoint was made."""
        if self._random is not None:
            set_random_state(self._random[self.distributed_rank], unwrap_ddp_if_wrapped(self.model).rng, self.device)
        with deterministic_on_cpu(self.model), one_thread_if_small(self.model):
            super().run()

    def train_epoch(self, train_loader: Iterable[Any]) -> dict[str, Any]:
        """One epoch, as ``Trainer``'s."""
        if self.device.type == "cuda":
            return super().train_epoch(train_loader)
        return rebound(Trainer.train_epoch, MemMeter=_NoMemory)(self, train_loader)

    def save_checkpoint(self, epoch: int, checkpoint_names: list[str] | None = None) -> None:
        """Save as ``Trainer`` does, with the random states of all ranks."""
        own = random_state(unwrap_ddp_if_wrapped(self.model).rng, self.device)
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, own)
        self._random = states
        super().save_checkpoint(epoch, checkpoint_names)

    def _save_checkpoint(self, checkpoint: dict[str, Any], checkpoint_path: str) -> None:
        info = dict(stage_of(unwrap_ddp_if_wrapped(self.model)).info or {})
        save_torch({**checkpoint, ENTRY: {"info": info, "random": self._random}}, checkpoint_path)

    def _load_resuming_checkpoint(self, ckpt_path: str) -> None:
        super()._load_resuming_checkpoint(ckpt_path)
        states = (read_plain(ckpt_path).get(ENTRY) or {}).get("random")
        if states is None or len(states) != dist.get_world_size():
            # SAM2 puts its own logger in the root's place: others' lines would not reach its file.
            logging.root.warning(
                "%s was made by %s ranks, and there are %d now: the training goes on, but not as if it had not been "
                "interrupted",
                ckpt_path,
                "an unknown number of" if states is None else len(states),
                dist.get_world_size(),
            )
            return
        self._random = states
