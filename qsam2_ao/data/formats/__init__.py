"""Layouts of data sets on disk, one module each; :func:`qsam2_ao.data.datasets.open_dataset` chooses among them."""
