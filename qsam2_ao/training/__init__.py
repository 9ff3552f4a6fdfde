"""Training SAM2 in float and with fake-quantizers: one loop, SAM2's own losses or a float model's answers."""

from ..optional import needed

# SAM2's own `training` package imports them, and does not say what they are for.
for _package in ("tensordict", "tensorboard"):
    needed(_package)
