"""The exceptions that qsam2_ao raises: each names what was wrong, where, and what to do about it.

Where Python has a class for the same fault, they are that too: ``except ValueError`` also catches a QConfigError.
"""


class QSAM2Error(Exception):
    """Base class of every error that qsam2_ao raises on purpose."""


class GraphTraceError(QSAM2Error):
    """A part of the model cannot be turned into an FX graph."""


class CalibrationError(QSAM2Error, ValueError):
    """The calibration data are empty, unusable or too few, or a calibration solve failed."""


class QConfigError(QSAM2Error, ValueError):
    """An unknown preset, region or setting of a quantization recipe."""


class CheckpointError(QSAM2Error, ValueError):
    """A model file is truncated, foreign, too new, or does not fit the model."""


class DataError(QSAM2Error, ValueError):
    """An image, video, mask or dataset folder cannot be used."""


class UnsupportedLayerError(QSAM2Error, NotImplementedError):
    """A layer, shape, dtype or device that the requested operation does not support."""


class NonFiniteError(QSAM2Error, ArithmeticError):
    """NaN or infinity where finite numbers are needed."""


class MissingPackageError(QSAM2Error, ImportError):
    """A package that this task needs is not installed."""
