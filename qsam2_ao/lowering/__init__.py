"""From integer codes to a deployed module: one file per target, and the plan that records what was done."""
