"""Moved to :mod:`qsam2_ao.reporting.label_maps`, which evaluation writes by too."""

from __future__ import annotations

from ..reporting.label_maps import label_map, save_label_map

__all__ = ["label_map", "save_label_map"]
