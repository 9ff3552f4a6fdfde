"""Layers on oneDNN's int8 products, which torch brings along: for x86-64 CPUs with AVX2 where the kernels do not run, on any system."""
