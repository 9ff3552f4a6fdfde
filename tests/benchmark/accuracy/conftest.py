from __future__ import annotations

import pytest

METRICS = {"J": 3, "F": 3, "J&F": 3, "mIoU_box": 2, "mIoU_1click": 2, "mIoU_3click": 2}


def make_cell(model, method, setting, seed=0, level=70.0):
    sums = {name: [count * (level + 3 * video + seed) for video in range(4)] for name, count in METRICS.items()}
    counts = {name: [count] * 4 for name, count in METRICS.items()}
    return {
        "kind": "cell",
        "model": model,
        "method": method,
        "setting": setting,
        "seed": seed,
        "rates": {"lr": 1e-3, "vectors": 1.0, "ranges": 1.0},
        "metrics": {name: sum(values) / sum(counts[name]) for name, values in sums.items()},
        "sums": sums,
        "counts": counts,
        "bytes": 1 << 20,
        "losses": [],
    }


@pytest.fixture
def cells():
    """A small benchmark: two methods, two seeds, and the float model."""
    found = []
    for model in ("plain", "heavy-tailed"):
        found.append(make_cell(model, "float", "float", level=80))
        for seed in (0, 1):
            found += [make_cell(model, "LSQ", s, seed, 60) for s in ("W2A4", "W2A8")]
            found += [make_cell(model, "QSAM2", s, seed, 75) for s in ("W2A4", "W2A8")]
        found += [make_cell(model, "MSE", "PTQ W3", level=40), make_cell(model, "VRC+MSE", "PTQ W3", level=70)]
    return found
