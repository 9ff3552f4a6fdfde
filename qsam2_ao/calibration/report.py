"""What variance-reduced calibration did to each layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class LayerReport:
    """Figures of one calibrated layer; all relative to the calibration data.

    Attributes:
        layer: Module path in the model.
        shape: Shape of the weight.
        n: Input rows seen.
        d_in: Width of an input row.
        damping: lambda / mean(diag G) that was solved with; 0 with ``auto`` means that the weight was kept.
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
class VRCReport:
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
        """The report as a rich table, one row per layer."""
        table = Table(title=f"VRC from {self.images} images")
        table.add_column("layer", overflow="fold")
        for heading in (
            "shape",
            "n",
            "cond(G)",
            "damping",
            "output change",
            "norm",
            "std",
            "kurtosis",
            "max",
        ):
            table.add_column(heading, justify="right")
        table.add_column("quantized error", justify="right")
        table.add_column("note", overflow="fold")
        for r in self.layers:
            table.add_row(
                r.layer,
                "x".join(map(str, r.shape)),
                str(r.n),
                f"{r.cond:.1e}",
                f"{r.damping:.0e}" if r.damping else "off" if r.auto else "0",
                f"{r.output_change:.1e}",
                f"{r.norm_ratio:.3f}",
                f"{r.std_before:.3g} -> {r.std_after:.3g}",
                f"{r.kurtosis_before:.2f} -> {r.kurtosis_after:.2f}",
                f"{r.max_before:.3g} -> {r.max_after:.3g}",
                f"{r.quantized_error_before:.2e} -> {r.quantized_error_after:.2e}",
                "; ".join(([f"kept: {r.refused}"] if r.refused else []) + r.warnings),
            )
        return table

    def __rich__(self) -> Table:
        return self.table()
