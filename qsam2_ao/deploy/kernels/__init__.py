"""Parts on the int8 kernels: codes in, one kernel per layer, the rest in bfloat16."""
