"""Prompts by frame: how they may be given, and which of them a clip or a model cannot hear."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qsam2_ao.errors import DataError
from qsam2_ao.segmentation.schedule import ObjectPrompt, ScheduleBuilder, as_schedule, check_for_exported

CLICK, MASK = ObjectPrompt([(3.0, 4.0, 1)]), ObjectPrompt(mask=np.ones((48, 64), bool))


def test_prompts_without_a_frame_are_for_the_first() -> None:
    assert as_schedule({7: CLICK, 2: MASK}) == {0: {7: CLICK, 2: MASK}}
    assert list(as_schedule({9: {1: None}, 3: {1: CLICK}, 5: {}})) == [3, 9]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({1: CLICK, 2: {1: CLICK}}, "not a mixture"),
        ({1: "3,4"}, "needs a click"),
        ({0: {"dog": CLICK}}, "frame 0: 'dog' is no object id"),
        ({0: {True: CLICK}}, "frame 0: True is no object id"),
    ],
)
def test_what_is_no_schedule(prompts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_schedule(prompts)


def test_what_exported_files_can_hear() -> None:
    again: Any = {0: {1: CLICK}, 3: {1: None, 2: CLICK}, 5: {1: CLICK}}
    check_for_exported(again)
    with pytest.raises(DataError, match="frame 3, object 1: the object is tracked already"):
        check_for_exported({0: {1: CLICK}, 3: {1: CLICK}})
    with pytest.raises(DataError, match="frame 0, object 1: the object is tracked already"):
        check_for_exported({0: {1: CLICK}, 3: {1: CLICK}}, "backward")
    with pytest.raises(DataError, match="frame 2, object 1: it is a mask"):
        check_for_exported({2: {1: MASK}})


def test_what_is_said_twice() -> None:
    builder = ScheduleBuilder((64, 48))
    builder.add_points("a: ", 2, 1, [[1, 2]], None)
    builder.add_points("b: ", 2, 1, [[3, 4], [5, 6]], [0, 1])
    builder.remove("c: ", 4, 1)
    assert builder.schedule() == {2: {1: ObjectPrompt([(1, 2, 1), (3, 4, 0), (5, 6, 1)])}, 4: {1: None}}
    with pytest.raises(DataError, match="d: object 1 has a prompt on frame 4 and is removed there"):
        builder.add_box("d: ", 4, 1, [1, 2, 3, 4])
