"""How a model is set up for an evaluation, and that it is afterwards as it was."""

from __future__ import annotations

from typing import Any

import pytest

from qsam2_ao.errors import DataError
from qsam2_ao.evaluation.protocol import following


def settings(model: Any) -> tuple[bool, bool]:
    return model.binarize_mask_from_pts_for_mem_enc, model.sam_mask_decoder.dynamic_multimask_via_stability


def test_the_official_protocol_is_without_what_build_sam_adds(predictor: Any) -> None:
    with following(predictor, "deployed"):
        assert settings(predictor) == (True, True)
    with following(predictor, "official"):
        assert settings(predictor) == (False, False)
    assert settings(predictor) == (True, True)


def test_evaluations_that_overlap_leave_the_model_as_it_was(predictor: Any) -> None:
    first, second = (following(predictor, "official") for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings(predictor) == (False, False), "the second is still at work"
    second.__exit__(None, None, None)
    assert settings(predictor) == (True, True)


def test_an_unknown_protocol_is_refused(predictor: Any) -> None:
    with pytest.raises(DataError, match="official, deployed"), following(predictor, "davis"):  # type: ignore[arg-type]
        pass
