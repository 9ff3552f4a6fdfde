"""Writes transformers_names.txt: the tensors of Sam2VideoModel's default, which is SAM 2.1 in its smallest size.

    python tests/models/make_transformers_names.py

Needs transformers (it was run with 5.24).
"""

from __future__ import annotations

from pathlib import Path

import torch

import qsam2_ao  # noqa: F401 - before sam2 and torchvision, which may need its repairs

if __name__ == "__main__":
    from transformers import Sam2VideoConfig, Sam2VideoModel

    with torch.device("meta"):
        state = Sam2VideoModel(Sam2VideoConfig()).state_dict()
    lines = [f"{name} {' '.join(map(str, value.shape))}" for name, value in state.items()]
    Path(__file__).with_name("transformers_names.txt").write_text("\n".join(lines) + "\n")
