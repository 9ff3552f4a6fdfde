"""Layers on oneDNN's int8 products, which torch brings along: for x86-64 CPUs without AVX512-VNNI, on any system."""
