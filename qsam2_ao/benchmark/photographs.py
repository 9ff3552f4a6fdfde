"""Masks on real photographs by the float model and with 4-bit and 2-bit weights, side by side.

``python -m qsam2_ao.benchmark.photographs`` draws ``benchmarks/results/photographs.png``. The photographs are those
that come with scikit-image, which no model was trained on. Others of them are calibrated on; nothing is trained.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..reporting.overlay import save_picture
from ..workflow.photographs import draw_photographs

PRESETS = ("w4a8", "w2a8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m qsam2_ao.benchmark.photographs", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/photographs.png"))
    output = parser.parse_args(arguments).output
    sheet, agreement = draw_photographs(PRESETS)
    save_picture(sheet, output)
    print(f"{output}: " + ", ".join(f"{name} {value:.1f} % IoU with float" for name, value in agreement.items()))


if __name__ == "__main__":
    main()
