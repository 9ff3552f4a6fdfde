"""SAM2 as FX graphs: which submodules become graphs, and how each SAM2 class is traced."""

from .part_graph import PartGraph
from .regions import REGIONS, Part, check_regions, find_parts, trace_regions
from .single import SINGLE_LAYER, as_part, graph_of
from .tracer import trace_part

__all__ = [
    "REGIONS",
    "SINGLE_LAYER",
    "Part",
    "PartGraph",
    "as_part",
    "check_regions",
    "find_parts",
    "graph_of",
    "trace_part",
    "trace_regions",
]
