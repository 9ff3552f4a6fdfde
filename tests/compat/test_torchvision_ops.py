from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qsam2_ao.compat import torchvision_ops
from qsam2_ao.compat.torchvision_ops import nms, operators_declared, operators_missing


def brute_force_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Scalar loops over all pairs in float32, written from the definition."""

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        width = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
        height = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
        inter = width * height
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
        return float(inter / union) if union > 0 else 0.0

    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        if all(iou(boxes[k], boxes[i]) <= threshold for k in kept):
            kept.append(i)
    return kept


@settings(max_examples=60, deadline=None)
@given(
    # Small integers: many tied scores, equal boxes, empty boxes and overlaps exactly at the threshold.
    corners=st.lists(
        st.tuples(*[st.integers(0, 6)] * 4, st.integers(0, 3)),
        max_size=25,
    ),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
)
def test_nms_equals_brute_force(corners: list[tuple[int, ...]], threshold: float) -> None:
    boxes = np.array(
        [[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d, _ in corners], dtype=np.float32
    ).reshape(-1, 4)
    scores = np.array([s for *_, s in corners], dtype=np.float32)
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold)
    assert kept.dtype == torch.int64
    assert kept.tolist() == brute_force_nms(boxes, scores, threshold)


def test_nms_of_no_boxes() -> None:
    kept = nms(torch.empty(0, 4), torch.empty(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_dtypes(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3], [5, 5, 6, 6]], dtype=dtype)
    scores = torch.tensor([0.5, 0.75, 0.25], dtype=dtype)
    assert nms(boxes, scores, 0.5).tolist() == [1, 2]
    assert nms(boxes, scores, 0.8).tolist() == [1, 0, 2]


def test_nms_refuses_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        nms(torch.zeros(3, 5), torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"\(2,\)"):
        nms(torch.zeros(3, 4), torch.zeros(2), 0.5)


def test_torchvision_works_after_importing_the_package() -> None:
    from torchvision.ops import batched_nms, box_area, box_convert, nms
    from torchvision.transforms.v2 import functional

    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2]])
    scores = torch.tensor([0.1, 0.9, 0.5])
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert batched_nms(boxes, scores, torch.tensor([0, 1, 0]), 0.5).tolist() == [1, 2]
    assert box_area(boxes).tolist() == [4, 4, 4]
    assert box_convert(boxes[:1], "xyxy", "cxcywh").tolist() == [[1, 1, 2, 2]]
    assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)


def test_batched_nms_of_many_boxes_equals_one_nms_per_class() -> None:
    from torchvision.ops import batched_nms

    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(1500, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 1 + torch.rand(1500, 2, generator=generator) * 20], dim=1)
    scores = torch.rand(1500, generator=generator)
    classes = torch.randint(0, 3, (1500,), generator=generator)
    kept = batched_nms(boxes, scores, classes, 0.5)
    per_class = [(i := (classes == c).nonzero().flatten())[nms(boxes[i], scores[i], 0.5)] for c in range(3)]
    expected = torch.cat(per_class)
    assert torch.equal(kept, expected[scores[expected].argsort(descending=True)])


def test_sam2_classes_import() -> None:
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    assert SAM2AutomaticMaskGenerator.generate
    assert SAM2ImagePredictor.predict


def test_a_second_call_changes_nothing() -> None:
    from torchvision.ops import boxes

    before = torchvision_ops._library
    with operators_declared():
        pass
    assert torchvision_ops._library is before
    assert boxes.nms(torch.zeros(2, 4), torch.tensor([2.0, 1.0]), 0.5).tolist() == [0, 1]


def test_decides_that_nothing_is_missing_once_the_operator_is_there() -> None:
    import torchvision  # noqa: F401

    assert torch.ops.torchvision.nms
    assert not operators_missing()


# In a fresh process an operator of the user's own stands for a matching torchvision.
_WITH_OPERATORS = """
import torch
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.impl("nms", lambda dets, scores, iou_threshold: scores.argsort(), "CPU")
import qsam2_ao
from qsam2_ao.compat import torchvision_ops
assert not torchvision_ops.operators_missing()
import torchvision
assert torchvision_ops._library is None
assert torchvision.ops.boxes._assert_has_ops is torchvision.extension._assert_has_ops
assert torch.ops.torchvision.nms(torch.zeros(2, 4), torch.tensor([2.0, 1.0]), 0.5).tolist() == [1, 0]
"""


@pytest.mark.slow
def test_existing_operators_are_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", _WITH_OPERATORS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_torchvision_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_ops.torch.ops, "torchvision", types.SimpleNamespace())
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.delitem(sys.modules, "torchvision")
    assert not operators_missing()
