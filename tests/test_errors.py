"""Errors are caught as what Python calls them, too."""

from __future__ import annotations

import pytest

from qsam2_ao import errors


@pytest.mark.parametrize(
    ("error", "also"),
    [
        (errors.QConfigError, ValueError),
        (errors.DataError, ValueError),
        (errors.CalibrationError, ValueError),
        (errors.CheckpointError, ValueError),
        (errors.NonFiniteError, ArithmeticError),
        (errors.UnsupportedLayerError, NotImplementedError),
        (errors.MissingPackageError, ImportError),
    ],
)
def test_python_has_a_name_for_it(error: type[Exception], also: type[Exception]) -> None:
    assert issubclass(error, errors.QSAM2Error)
    assert issubclass(error, also)
