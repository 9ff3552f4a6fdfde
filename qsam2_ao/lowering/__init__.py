"""Old paths of what is in :mod:`qsam2_ao.deploy` now."""
