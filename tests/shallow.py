"""The embedded architecture with few layers, every kind of them: for what takes as long as there are layers."""

from __future__ import annotations

from typing import Any

#: For ``build_embedded``.
SHALLOW: dict[str, dict[str, Any]] = {
    "image_encoder": {"trunk": {"stages": [1, 1, 2, 1], "global_att_blocks": [3]}},
    "memory_attention": {"num_layers": 1},
    "memory_encoder": {"fuser": {"num_layers": 1}},
}
