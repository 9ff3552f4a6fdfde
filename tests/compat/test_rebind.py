from __future__ import annotations

import functools
import types
from typing import Any

import pytest

from qsam2_ao.compat.rebind import rebound

_SOURCE = """
LIMIT = 10
def helper(x):
    return x + LIMIT
def function(x, y=1, *, z=2):
    def inner(v):
        return helper(v)
    return [inner(x), y, z]
"""


@pytest.fixture
def foreign() -> Any:
    module = types.ModuleType("foreign")
    exec(_SOURCE, module.__dict__)
    return module


def test_the_copy_alone_finds_other_names(foreign: Any) -> None:
    def helper(v: int) -> int:
        return -v

    copy = rebound(foreign.function, helper=helper)
    assert copy(5) == [-5, 1, 2]
    assert copy(5, 6, z=7) == [-5, 6, 7]
    assert foreign.function(5) == [15, 1, 2]
    assert foreign.helper(1) == 11


def test_decorators_are_left_out(foreign: Any) -> None:
    @functools.wraps(foreign.helper)
    def decorated(x: int) -> int:
        return 100 * foreign.helper(x)

    assert rebound(decorated, LIMIT=1)(1) == 2


def test_a_name_that_is_not_read_is_an_error(foreign: Any) -> None:
    with pytest.raises(AttributeError, match=r"function reads no global name 'limit'"):
        rebound(foreign.function, limit=1)
