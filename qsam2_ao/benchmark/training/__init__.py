"""What quantization-aware training and calibration cost, beside training and running the float model."""
