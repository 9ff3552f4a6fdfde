"""qsam2_ao: Segment Anything Model 2, quantized to 2-8 bits and still running in SAM2's own predictors."""
