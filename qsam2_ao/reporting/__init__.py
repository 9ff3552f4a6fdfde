"""What people look at: mask pictures, sizes, tables, and the list of what was quantized and what was not."""
