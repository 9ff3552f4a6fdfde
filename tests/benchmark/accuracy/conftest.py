from __future__ import annotations

import pytest
from benchmark_experiments import make_experiment


@pytest.fixture
def experiments():
    """A small benchmark: two methods, two seeds, and the float model."""
    found = []
    for model in ("plain", "heavy-tailed"):
        found.append(make_experiment(model, "float", "float", level=80))
        for seed in (0, 1):
            found += [make_experiment(model, "LSQ", s, seed, 60) for s in ("W2A4", "W2A8")]
            found += [make_experiment(model, "QSAM2", s, seed, 75) for s in ("W2A4", "W2A8")]
        found += [
            make_experiment(model, "MSE", "PTQ W3", level=40),
            make_experiment(model, "VRC+MSE", "PTQ W3", level=70),
        ]
    return found
