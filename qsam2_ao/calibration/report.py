"""What variance-reduced calibration did to each layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table

from ..rich_repr import ShowsTable
from ..spelling import counted


@dataclass
class LayerReport:
    """Figures of one calibrated layer; all relative to the calibration data.

    G is the centred Gram matrix of the inputs, X^T X - n mean mean^T, so that errors are shares of what varies in the
    output: what quantization and calibration do to its mean, the bias takes back. Without a bias, G is X^T X.

    Attributes:
        layer: Module path in the model.
        shape: Shape of the weight.
        n: Input rows seen.
        d_in: Width of an input row.
        damping: lambda / mean(diag G) that was solved with, no input counted for more than 100 times the median one; 0
            with ``auto`` means that the weight was kept.
        lam: lambda.
        auto: Whether damping was searched.
        cond: Condition number of G; infinite where n < d_in.
        output_change: tr(D G D^T) / tr(W G W^T) with D = W_hat - W, of the solved weight.
        norm_ratio: ||W_hat||_F / ||W||_F of the solved weight.
        std_before: Standard deviation of the weight; likewise excess kurtosis and largest magnitude.
        quantized_error_before: tr(E G E^T) / tr(W G W^T) with E = Q(W) - W.
        quantized_error_after: The same with E = Q(W_hat) - W, still against the uncalibrated W.
        refused: Why the original weight was kept, or None.
        warnings: What to look at.
    """

    layer: str
    shape: tuple[int, ...]
    n: int
    d_in: int
    damping: float
    lam: float
    auto: bool
    cond: float
    output_change: float
    norm_ratio: float
    std_before: float
    std_after: float
    kurtosis_before: float
    kurtosis_after: float
    max_before: float
    max_after: float
    quantized_error_before: float
    quantized_error_after: float
    refused: str | None = None
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; infinite and undefined figures become None."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


@dataclass
class VRCReport(ShowsTable):
    """Report of a calibration, one :class:`LayerReport` per layer in scope.

    Attributes:
        layers: In the order of the model's modules.
        images: Number of calibration images.
        passes: Times that the images were run through the model.
    """

    layers: list[LayerReport]
    images: int
    passes: int = 1

    @property
    def refused(self) -> list[str]:
        """Layers that kept their weight, with the reason."""
        return [f"{layer.layer}: {layer.refused}" for layer in self.layers if layer.refused]

    @property
    def warnings(self) -> list[str]:
        """Warnings of all layers."""
        return [f"{layer.layer}: {warning}" for layer in self.layers for warning in layer.warnings]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "images": self.images,
            "passes": self.passes,
            "layers": [layer.to_dict() for layer in self.layers],
        }

    def table(self) -> Table:
        """The main figures as a rich table, one row per layer; before > after."""
        table = Table(title=f"VRC from {counted(self.images, 'image')}")
        table.add_column("layer", overflow="fold")
        headings = ("n", "cond(G)", "damping", "output change", "norm", "kurtosis", "max", "quantized error")
        for heading in headings:
            table.add_column(heading, justify="right")
        table.add_column("note", overflow="fold")
        for r in self.layers:
            table.add_row(
                r.layer,
                str(r.n),
                f"{r.cond:.0e}",
                "off" if r.auto and not r.damping else f"{r.damping:g}",
                f"{r.output_change:.1e}",
                f"{r.norm_ratio:.3f}",
                f"{r.kurtosis_before:.2f} > {r.kurtosis_after:.2f}",
                f"{r.max_before:.2g} > {r.max_after:.2g}",
                f"{r.quantized_error_before:.1e} > {r.quantized_error_after:.1e}",
                "; ".join(([f"kept: {r.refused}"] if r.refused else []) + r.warnings),
            )
        return table
