"""The quantizers that the benchmark compares, and the settings that it compares them at."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from torch.ao.quantization import QConfig

from ...errors import QConfigError
from ...recipe import lsc_qconfig, with_first_and_last
from ...training.distillation import RECOMMENDED, DistillationWeights
from ...training.settings import RANGE_RATE
from .rivals import rival_qconfig

FLOAT = "float"
"""Name of the setting, and of the method, without quantization."""
MIXED = ", mixed bits"
"""End of the name of a method whose layers have different bits."""
Group = Literal["reference", "rival", "ours", "ablation"]


@dataclass(frozen=True)
class Setting:
    """Bits of weights and activations, with or without training.

    Attributes:
        name: For example "W2A4", "W3" (weights alone) or "PTQ W2" (without training).
        weight_bits: Bits of the weights, per output channel; 8 for the first and last layers. 2.5 stands for half way
            between the sizes of 2 and 3, and is for methods whose layers have different bits.
        activation_bits: Bits of the inputs, per tensor; 8 for the first and last layers; None keeps them in float.
        trained: Whether it is trained.
    """

    name: str
    weight_bits: float
    activation_bits: int | None
    trained: bool


def parse_setting(name: str) -> Setting:
    """A setting by its name.

    Raises:
        QConfigError: It is none.

    Example:
        >>> parse_setting("PTQ W2A8")
        Setting(name='PTQ W2A8', weight_bits=2, activation_bits=8, trained=False)
    """
    if name == FLOAT:
        return Setting(name, 32, None, True)
    match = re.fullmatch(r"(PTQ )?W([2-7]\.5|[2-8])(?:A([2-8]))?", name)
    if match is None:
        raise QConfigError(f"unknown setting {name!r}; settings are W2A4, W3, PTQ W2 and the like")
    bits = float(match[2]) if "." in match[2] else int(match[2])
    return Setting(name, bits, int(match[3]) if match[3] else None, match[1] is None)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: What the table calls it.
        quantizer: "lsc", a name out of ``RIVALS``, or None for the float model.
        group: What it is in the comparison.
        vrc: Damping of VRC, "auto", or None for none.
        equalize: Whether outlier channels are equalized across layers first, as SmoothQuant does.
        rounding: Rounding of the start weights, as for ``prepare_qsam2``.
        output_start: Whether weight ranges start with the least error of the output; else of the weight.
        grid: Grid of LSC's weights; None for the default.
        momentum: Of LSC's alpha; None for the default.
        alpha: Constant start of LSC's alpha in place of the search.
        learn_alpha: Whether LSC's alpha is learned.
        distill: Weights of the distillation from the float model, or None for none.
        partwise: Whether each part learns from its float twin alone; not together with ``distill``.
        held_out: Whether held-out batches choose between its averaged weights and its start, as the commands do.
        range_rate: How much faster its clipping ranges learn than a rate of the grid says.
        mixed: Whether the layers get different bits, by their sensitivity, in the size that the setting's bits take.
    """

    name: str
    quantizer: str | None
    group: Group
    vrc: str | float | None = None
    equalize: bool = False
    rounding: str = "nearest"
    output_start: bool = True
    grid: str | None = None
    momentum: float | None = None
    alpha: float | None = None
    learn_alpha: bool = True
    distill: DistillationWeights | None = None
    partwise: bool = False
    held_out: bool = False
    range_rate: float = 1.0
    mixed: bool = False

    @property
    def learning_rate_of(self) -> str:
        """Name of the method whose learning rates it is trained with: variants have those of what they vary."""
        if self.group in ("rival", "ours") or self.quantizer is None:
            return self.name
        return "VRC+LSC" if self.quantizer == "lsc" else "LSQ"

    def qconfig(self, weight_bits: int, activation_bits: int | None) -> QConfig:
        """Its QConfig at these bits."""
        if self.quantizer == "lsc":
            return lsc_qconfig(weight_bits, activation_bits, grid=self.grid, momentum=self.momentum)
        if self.quantizer is None:
            raise QConfigError(f"{self.name} is not quantized")
        return rival_qconfig(self.quantizer, weight_bits, activation_bits)

    def recipe(self, setting: Setting) -> dict[str, object]:
        """What ``prepare_qsam2`` takes as qconfig at a setting; the same layers and bits for every method.

        Raises:
            QConfigError: The setting is between two bit-widths.
        """
        if not isinstance(setting.weight_bits, int):
            raise QConfigError(f"{self.name} has one bit-width for all layers: {setting.name} is for{MIXED[1:]}")
        edge = replace(self, grid=None).qconfig(8, None if setting.activation_bits is None else 8)
        return dict(with_first_and_last(self.qconfig(setting.weight_bits, setting.activation_bits), edge))


_PAPER = Method("VRC+LSC", "lsc", "ours", vrc="auto")
_FULL = replace(_PAPER, name="QSAM2", rounding="gptq", distill=RECOMMENDED)
_PARTWISE = replace(
    _FULL, name="QSAM2, part by part", distill=None, partwise=True, held_out=True, range_rate=RANGE_RATE
)
_LSQ_PARTWISE = Method(
    "LSQ, equalized and part by part", "lsq", "reference", equalize=True, partwise=True, held_out=True
)

_ALL = (
    Method(FLOAT, None, "reference"),
    Method("float, trained as long", None, "reference"),
    Method("MinMax-EMA", "minmax", "rival"),
    Method("LSQ", "lsq", "rival"),
    Method("LSQ+", "lsq+", "rival"),
    Method("PACT-SAWB", "pact-sawb", "rival"),
    Method("torchao range learning", "torchao", "rival"),
    replace(_PAPER, name="LSC", vrc=None),
    _PAPER,
    _FULL,
    _PARTWISE,
    # What the start is worth to a rival.
    Method("VRC+LSQ", "lsq", "reference", vrc="auto"),
    Method("LSQ, equalized", "lsq", "reference", equalize=True),
    Method("LSQ, distilled", "lsq", "reference", distill=RECOMMENDED),
    Method("LSQ, equalized and distilled", "lsq", "reference", equalize=True, distill=RECOMMENDED),
    _LSQ_PARTWISE,
    replace(_LSQ_PARTWISE, name="LSQ, equalized and part by part, ranges at ten times the rate", range_rate=RANGE_RATE),
    # VRC+LSC with one thing changed.
    replace(_PAPER, name="VRC+LSC, no momentum", group="ablation", momentum=0.0),
    replace(_PAPER, name="VRC+LSC, alpha not learned", group="ablation", learn_alpha=False),
    replace(_PAPER, name="VRC+LSC, alpha fixed at 2", group="ablation", alpha=2.0, learn_alpha=False),
    replace(_PAPER, name="VRC+LSC, alpha started at 2", group="ablation", alpha=2.0),
    replace(_PAPER, name="VRC+LSC, started by the weight's error", group="ablation", output_start=False),
    replace(_PAPER, name="VRC+LSC, lambda 0.01", group="ablation", vrc=0.01),
    replace(_PAPER, name="VRC+LSC, lambda 0.1", group="ablation", vrc=0.1),
    replace(_PAPER, name="VRC+LSC, signed grid", group="ablation", grid="symmetric"),
    replace(_PAPER, name="VRC+LSC, distilled", group="ablation", distill=RECOMMENDED),
    replace(_PAPER, name="VRC+LSC, GPTQ start", group="ablation", rounding="gptq"),
    replace(_PAPER, name="VRC+LSC, equalized", group="ablation", equalize=True),
    replace(_PARTWISE, name="QSAM2, part by part, ranges at the common rate", group="reference", range_rate=1.0),
    # Without training. Clipping by least squared error of the weight, or of the output.
    Method("MSE", "lsc", "reference", output_start=False),
    Method("MSE, equalized", "lsc", "reference", output_start=False, equalize=True),
    Method("output MSE", "lsc", "reference"),
    Method("VRC+MSE", "lsc", "reference", vrc="auto", output_start=False),
    Method("GPTQ", "lsc", "reference", rounding="gptq"),
    Method("VRC+GPTQ", "lsc", "ours", vrc="auto", rounding="gptq"),
    Method(f"VRC+GPTQ{MIXED}", "lsc", "ours", vrc="auto", rounding="gptq", mixed=True),
)

METHODS: dict[str, Method] = {method.name: method for method in _ALL}
"""Every method by its name."""

RIVALS = tuple(name for name, method in METHODS.items() if method.group == "rival")
STRONG_RIVALS = (*RIVALS, *(name for name in METHODS if name.startswith("LSQ, ")))
"""With LSQ from a better start, or with a better loss, than its paper's."""
