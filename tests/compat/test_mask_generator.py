from __future__ import annotations

import numpy as np
import pytest
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.models.embedded import build_embedded


@pytest.mark.slow
def test_generates_masks_without_duplicates_on_a_small_model() -> None:
    model = build_embedded(seed=3)
    image = generate_sequence("test", 0, num_frames=1).frames[0]
    settings = {
        "points_per_side": 6,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "multimask_output": False,
    }
    everything = SAM2AutomaticMaskGenerator(model, box_nms_thresh=1.0, **settings).generate(image)
    distinct = SAM2AutomaticMaskGenerator(model, box_nms_thresh=0.5, **settings).generate(image)
    assert 0 < len(distinct) < len(everything)
    boxes = np.array([mask["bbox"] for mask in distinct], float)
    for i, (x, y, w, h) in enumerate(boxes):
        for x2, y2, w2, h2 in boxes[i + 1 :]:
            overlap = max(0, min(x + w, x2 + w2) - max(x, x2)) * max(0, min(y + h, y2 + h2) - max(y, y2))
            assert overlap <= 0.5 * (w * h + w2 * h2 - overlap) + 1e-6
    assert all(mask["segmentation"].shape == image.shape[:2] for mask in distinct)
