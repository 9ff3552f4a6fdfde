"""Made-up experiments of the accuracy benchmark."""

from __future__ import annotations

from typing import Any

METRICS = {"J": 3, "F": 3, "J&F": 3, "mIoU_box": 2, "mIoU_1click": 2, "mIoU_3click": 2}


def make_experiment(model: str, method: str, setting: str, seed: int = 0, level: float = 70.0) -> dict[str, Any]:
    """An experiment of four videos, each 3 percent better than the one before it."""
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
