"""Which experiments a run consists of, most telling first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...errors import QConfigError
from ...spelling import unknown_name
from .methods import FLOAT, METHODS, MIXED
from .models import MODELS

TRAINED = ("W2A4", "W2A8", "W3A8", "W4A8", "W8A8", "W4A4", "W2", "W3", "W4")
UNTRAINED = ("PTQ W2", "PTQ W3", "PTQ W4", "PTQ W2A8", "PTQ W4A8", "PTQ W8A8", "PTQ W2A4")
HALF_WAY = "PTQ W2.5"
"""For layers of different bits."""
COLUMNS = (*TRAINED, "W2A2")
UNTRAINED_COLUMNS = (UNTRAINED[0], HALF_WAY, *UNTRAINED[1:], "PTQ W3A8", "PTQ W4A4", "PTQ W2A2")
MAIN_MODELS = ("heavy-tailed", "plain")
"""Of the procedural scenes."""
REAL_MODELS = ("plain", "outliers")
"""Of real pictures."""

_MAIN = ("MinMax-EMA", "LSQ", "LSQ+", "PACT-SAWB", "torchao range learning", "LSC", "VRC+LSC", "QSAM2")
_EXPLAINING = ("VRC+LSQ", "LSQ, equalized", "LSQ, distilled")
_ABLATIONS = tuple(name for name, method in METHODS.items() if method.group == "ablation")
_PTQ = ("MinMax-EMA", "MSE", "MSE, equalized", "output MSE", "VRC+MSE", "GPTQ", "VRC+GPTQ")
_VARIED = tuple(name for name in MODELS if name.startswith("heavy-tailed "))


@dataclass(frozen=True)
class Search:
    """A search for a method's learning rate.

    Attributes:
        method: One of ``METHODS``.
        model: The model that it is made on.
        setting: The setting.
    """

    method: str
    model: str = "heavy-tailed"
    setting: str = "W2A4"


@dataclass(frozen=True)
class Unit:
    """Experiments that share their calibration.

    Attributes:
        model: One of ``MODELS``.
        method: One of ``METHODS``.
        setting: Name of a setting.
        seeds: Seeds of the training; (0,) without one.
        own_rate: Whether the learning rate is searched for with this model, method and setting; otherwise with the
            heavy-tailed model at W2A4, and variants have the rate of what they vary.
    """

    model: str
    method: str
    setting: str
    seeds: tuple[int, ...]
    own_rate: bool = False

    @property
    def search(self) -> Search | None:
        """The search whose learning rate is used; None without training."""
        if self.method == FLOAT or self.setting.startswith("PTQ"):
            return None
        if self.own_rate:
            return Search(self.method, self.model, self.setting)
        return Search(METHODS[self.method].learning_rate_of)


def full_plan(seeds: int = 3) -> list[Unit]:
    """Every experiment of the report: the hardest setting with all seeds, others with the first seed, then the rest."""
    every, first, others = tuple(range(seeds)), (0,), tuple(range(1, seeds))

    def trained(settings: tuple[str, ...], models: tuple[str, ...], methods: tuple[str, ...]) -> list[Unit]:
        return [Unit(model, method, s, first) for s in settings for model in models for method in methods]

    units = [Unit(model, FLOAT, FLOAT, first) for model in MODELS]
    units += [Unit("heavy-tailed", method, "W2A4", every) for method in _MAIN]
    units += [Unit("heavy-tailed", method, s, first) for s in UNTRAINED[:2] for method in _PTQ]
    units += [Unit(model, f"VRC+GPTQ{MIXED}", s, first) for s in ("PTQ W3", "PTQ W4") for model in MAIN_MODELS]
    broad = trained(TRAINED[1:4], MAIN_MODELS[:1], _MAIN)
    broad += trained(("W2A4",), MAIN_MODELS[:1], _EXPLAINING + _ABLATIONS)
    broad += trained(TRAINED[4:], MAIN_MODELS[:1], _MAIN) + trained(TRAINED, MAIN_MODELS[1:], _MAIN)
    units += broad
    units += [Unit("plain", method, s, first) for s in UNTRAINED[:2] for method in _PTQ]
    units += [Unit(model, method, s, first) for s in UNTRAINED[2:] for model in MAIN_MODELS for method in _PTQ]
    units += trained(("W2A4",), _VARIED, ("LSQ", "LSC", "VRC+LSC", "QSAM2"))
    units += [Unit(model, method, "PTQ W2", first) for model in _VARIED for method in _PTQ]
    last = trained(("W2A4",), MAIN_MODELS[1:], _EXPLAINING + _ABLATIONS)
    units += last
    units += [Unit(unit.model, unit.method, unit.setting, others) for unit in broad + last if others]
    units += [Unit("plain", "float, trained as long", FLOAT, every)]
    return units


def quick_plan() -> list[Unit]:
    """A first impression in minutes: one seed, three methods, two bits."""
    return [
        Unit("heavy-tailed", FLOAT, FLOAT, (0,)),
        *(Unit("heavy-tailed", method, "PTQ W2", (0,)) for method in ("MSE", "VRC+GPTQ")),
        *(Unit("heavy-tailed", method, "W2A4", (0,)) for method in ("LSQ", "VRC+LSC", "QSAM2")),
    ]


def real_plan(seeds: int = 3) -> list[Unit]:
    """Every experiment on real pictures: without training, then two bits with the first seed, then the rest."""
    first, others = (0,), tuple(range(1, seeds))
    settings = ("W2A4", "W2A8", "W4A8", "W3A8", "W4A4", "W2A2")
    strong = (
        "QSAM2",
        "QSAM2, part by part",
        "LSQ",
        "VRC+LSC",
        "LSQ, equalized and distilled",
        "LSQ, equalized and part by part",
        "LSQ, equalized and part by part, ranges at ten times the rate",
        "QSAM2, part by part, ranges at the common rate",
    )
    methods = (
        *strong,
        "MinMax-EMA",
        "LSC",
        "LSQ+",
        "PACT-SAWB",
        "torchao range learning",
        "VRC+LSQ",
        "LSQ, distilled",
    )
    untrained = ("VRC+GPTQ", "MinMax-EMA", "GPTQ", "MSE", "VRC+MSE", "MSE, equalized")

    units = [Unit(model, FLOAT, FLOAT, first) for model in REAL_MODELS]
    units += [Unit(m, "VRC+GPTQ", f"PTQ {s}", first) for s in settings for m in REAL_MODELS]
    trained = [Unit(m, method, s, first, own_rate=True) for s in settings for method in methods for m in REAL_MODELS]
    units += trained[: 2 * len(methods) * len(REAL_MODELS)]
    units += [Unit(m, method, f"PTQ {s}", first) for s in settings for method in untrained[1:] for m in REAL_MODELS]
    units += [Unit(m, "VRC+GPTQ", s, first) for s in ("PTQ W3", "PTQ W2") for m in REAL_MODELS]
    units += [Unit(m, f"VRC+GPTQ{MIXED}", s, first) for s in ("PTQ W3", HALF_WAY) for m in REAL_MODELS]
    units += trained[2 * len(methods) * len(REAL_MODELS) :]
    units += [Unit(u.model, u.method, u.setting, others, own_rate=True) for u in trained if others]
    return units


def real_quick_plan() -> list[Unit]:
    """A first impression of real pictures: two bits, with and without training."""
    return [
        Unit("plain", FLOAT, FLOAT, (0,)),
        Unit("plain", "VRC+GPTQ", "PTQ W2A8", (0,)),
        *(Unit("plain", method, "W2A8", (0,), own_rate=True) for method in ("LSQ", "QSAM2")),
    ]


def select(
    units: Iterable[Unit],
    models: Iterable[str] | None = None,
    methods: Iterable[str] | None = None,
    settings: Iterable[str] | None = None,
) -> list[Unit]:
    """The units of some models, methods or settings only; None keeps all.

    Raises:
        QConfigError: A name that no unit has.
    """
    units = list(units)
    wanted = [None if names is None else set(names) for names in (models, methods, settings)]
    for kind, names in zip(("model", "method", "setting"), wanted, strict=True):
        known = list(dict.fromkeys(getattr(unit, kind) for unit in units))
        if unknown := sorted((names or set()) - set(known)):
            raise QConfigError(unknown_name(kind, unknown[0], known))
    return [
        unit
        for unit in units
        if all(
            allowed is None or value in allowed
            for allowed, value in zip(wanted, (unit.model, unit.method, unit.setting), strict=True)
        )
    ]
