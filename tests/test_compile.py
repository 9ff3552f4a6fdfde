"""The regions of a loaded model under torch.compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sam2_runs import images, run_video

from qsam2_ao import load_qsam2
from qsam2_ao.graph import find_parts


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_every_region_compiles_without_a_graph_break(packed_file: Path, backend: str) -> None:
    model = load_qsam2(packed_file)
    batch = images(1, 96)
    with torch.no_grad():
        expected = run_video(model, batch)
        for part in find_parts(model):
            compiled = torch.compile(model.get_submodule(part.path), backend=backend, fullgraph=True, dynamic=False)
            model.set_submodule(part.path, compiled)
        actual = run_video(model, batch)
    torch._dynamo.reset()
    for ours, theirs in zip(actual, expected, strict=True):
        # Fused kernels round otherwise, and a code of an input may fall on the other side of a step.
        error = (ours - theirs).square().mean() / theirs.square().mean().clamp(min=1e-12)
        assert float(error) < 1e-2
