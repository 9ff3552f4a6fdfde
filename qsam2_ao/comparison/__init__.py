"""Models beside each other on pictures and clips: agreement of their masks, speed, size, memory, and where they differ.

Example:
    >>> from qsam2_ao.comparison import compare_models, shipped_subjects
    >>> compare_models(["embedded", "tiny-w4a8.safetensors"], shipped_subjects(96))  # doctest: +SKIP
"""

from .results import Case, Comparison, ModelResult, SubjectResult
from .run import compare_models
from .saving import read_comparison, save_comparison
from .subjects import PromptPlan, Subject, shipped_subjects, user_subjects

__all__ = [
    "Case",
    "Comparison",
    "ModelResult",
    "PromptPlan",
    "Subject",
    "SubjectResult",
    "compare_models",
    "read_comparison",
    "save_comparison",
    "shipped_subjects",
    "user_subjects",
]
