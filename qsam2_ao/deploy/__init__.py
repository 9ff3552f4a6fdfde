"""From integer codes to a model that runs: the packed weight, the record of what is quantized, and the targets."""
