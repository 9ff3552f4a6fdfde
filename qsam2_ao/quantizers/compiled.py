"""The range of a training call as one opaque operator for torch.compile.

Which range holds depends on the step of the training and is settled in Python; a graph cannot hold it. The operator
runs the same code as eager mode, so compiled training learns the same ranges, and the graph has no break.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .step import REGISTER

if TYPE_CHECKING:
    from .lsc_training import LSCTraining


@torch.library.custom_op("qsam2_lsc::training_range", mutates_args=())
def training_range(x: Tensor, log_alpha: Tensor, quantizer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Clip range of a quantizer's training call (scale, zero point, d scale / d alpha, at limit), and alpha's factor.

    The quantizer's own state is brought up to date on the way, which no other operator of a graph looks at.

    Args:
        x: The weight or activation.
        log_alpha: Of the quantizer; its shape is that of the results.
        quantizer: Its number in the register, an integer of shape [].
    """
    clip, factor = REGISTER[int(quantizer)].training_range(x)
    return clip.scale, clip.zero_point, clip.scale_per_alpha, clip.at_limit, factor


@training_range.register_fake
def _(x: Tensor, log_alpha: Tensor, quantizer: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    scale, zero_point, per_alpha, factor = (torch.empty_like(log_alpha, dtype=torch.float32) for _ in range(4))
    return scale, zero_point, per_alpha, torch.empty_like(log_alpha, dtype=torch.bool), factor


@torch.compiler.disable
def observe_outside(quantizer: LSCTraining, x: Tensor) -> None:
    """Let a quantizer that passes its input through see it: breaks the graph."""
    quantizer.training_range(x.detach())
