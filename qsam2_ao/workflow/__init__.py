"""What the commands do, for Python: models by name, a packed file from a float model, bits by layer, the demo.

Example:
    >>> from qsam2_ao.workflow.quantize import QuantizationJob, quantize_to_file
    >>> quantize_to_file("embedded", QuantizationJob("w4a8"), "w4a8.safetensors")  # doctest: +SKIP
"""

EMBEDDED = "embedded"
"""The name of the smaller model, and of the procedural data, that come with the package."""
EMBEDDED_NAMES = (EMBEDDED, "embedded-256")
"""The models that come with the package; here too, because naming them takes no import of torch."""
