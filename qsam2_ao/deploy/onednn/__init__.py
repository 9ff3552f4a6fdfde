"""Layers on oneDNN's int8 products, which torch brings along: for x86-64 with AVX2 where the kernels do not run."""
