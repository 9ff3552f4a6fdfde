"""Training SAM2 in float and with fake-quantizers: one loop, procedural batches and SAM2's own losses."""

from ..optional import needed

# SAM2's own `training` package imports them, and does not say what they are for.
for _package in ("tensordict", "tensorboard"):
    needed(_package)
