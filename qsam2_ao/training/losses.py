"""SAM2's own loss with the weights of its own training, and how much SAM2Train is prompted with what."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from training.loss_fns import CORE_LOSS_KEY, MultiStepMultiMasksAndIous
from training.utils.data_utils import BatchedVideoDatapoint

from ..ranks import bare
from .prompts import prompts_by_object

#: Arguments of ``SAM2Train`` for clips, after ``sam2.1_hiera_b+_MOSE_finetune.yaml``: half of the clips start
#: from a mask, the others from a box or a click, which is then corrected once (SAM2Train needs at least one
#: correction).
TRAIN_OVERRIDES: dict[str, Any] = {
    "prob_to_use_pt_input_for_train": 0.5,
    "prob_to_use_box_input_for_train": 0.5,
    "prob_to_use_pt_input_for_eval": 0.0,
    "num_frames_to_correct_for_train": 1,
    "num_init_cond_frames_for_train": 1,
    "prob_to_sample_from_gt_for_train": 0.1,
    "num_correction_pt_per_frame": 1,
}


class SAM2Loss(nn.Module):
    """Focal, Dice, IoU and object-score loss of SAM2's training, as the mean over frames.

    By default the weights are those of SAM2's own configuration (20, 1, 1, 1). Taking the mean over frames lets
    images and clips weigh alike.

    Args:
        dice: Weight of the Dice loss.
        focal_alpha: Weight of an object's pixels in the focal loss; those outside get one minus this. SAM2's own 0.25
            has a model call inside only what it is three times as sure of as of the opposite: a model that is often
            unsure makes its masks too small.

    Attributes:
        terms: The terms of the last call, before they are weighted: "mask" (focal), "dice", "iou" and "class".

    Example:
        >>> loss = SAM2Loss()(prompted_forward(as_trainable(model), batch), batch)
    """

    def __init__(self, *, dice: float = 1.0, focal_alpha: float = 0.25) -> None:
        super().__init__()
        self.terms: dict[str, Tensor] = {}
        self.criterion = MultiStepMultiMasksAndIous(
            weight_dict={"loss_mask": 20, "loss_dice": dice, "loss_iou": 1, "loss_class": 1},
            focal_alpha=focal_alpha,
            supervise_all_iou=True,
            iou_use_l1_loss=True,
            pred_obj_scores=True,
            focal_gamma_obj_score=0.0,
            focal_alpha_obj_score=-1.0,
        )

    def forward(self, outputs: list[dict[str, Any]], batch: BatchedVideoDatapoint) -> Tensor:
        """The loss of what ``SAM2Train`` returned for a batch: a scalar."""
        losses: dict[str, Tensor] = self.criterion(outputs, batch.masks)
        self.terms = {
            name.removeprefix("loss_"): value.detach() / len(outputs)
            for name, value in losses.items()
            if name.startswith("loss_")
        }
        return losses[CORE_LOSS_KEY] / len(outputs)


def prompted_forward(model: nn.Module, batch: BatchedVideoDatapoint) -> list[dict[str, Any]]:
    """Run a ``SAM2Train`` on a batch; single images are always prompted with points or boxes.

    SAM2Train returns a mask prompt as its own answer, which leaves nothing to learn on a single frame. Which points an
    object gets does not depend on the batch's other objects.

    Args:
        model: A ``SAM2Train``, float or prepared for quantization.
        batch: Clips, or images as clips of one frame.

    Returns:
        SAM2Train's outputs, one dictionary per frame.
    """
    settings: Any = bare(model)
    usual = settings.prob_to_use_pt_input_for_train
    try:
        if batch.num_frames == 1:
            settings.prob_to_use_pt_input_for_train = 1.0
        with prompts_by_object(settings, batch):
            outputs: list[dict[str, Any]] = model(batch)
    finally:
        settings.prob_to_use_pt_input_for_train = usual
    return outputs
