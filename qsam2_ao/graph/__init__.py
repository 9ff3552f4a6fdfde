"""SAM2 as FX graphs: which submodules become graphs, and how each SAM2 class is traced."""

from .regions import REGIONS, Part, find_parts, trace_regions
from .tracer import trace_part

__all__ = ["REGIONS", "Part", "find_parts", "trace_part", "trace_regions"]
