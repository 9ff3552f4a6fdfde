"""An assignment of bits to layers: as a qconfig, and as a JSON file that is read strictly."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sam2.modeling.sam2_base import SAM2Base
from torch.ao.quantization import QConfigMapping

from ..errors import QConfigError
from ..files import atomic_write
from ..graph import REGIONS
from ..recipe import EXCEPTED_LAYERS, lsc_qconfig
from ..spelling import did_you_mean
from .layers import quantizable_layers

logger = logging.getLogger(__name__)

FORMAT = "qsam2_ao.bits"
VERSION = 1


def is_first_or_last(name: str) -> bool:
    """Whether a layer is one of ``EXCEPTED_LAYERS``."""
    return any(re.match(pattern, name) for pattern in EXCEPTED_LAYERS)


@dataclass(frozen=True)
class Assignment:
    """Bits of the weights, layer by layer.

    Attributes:
        bits: Path of a layer in the SAM2 model -> bits of its weight.
        loss: Sum of the measured losses, in the units of ``metric``.
        bytes: What the packed weights take, those of first and last layers at ``first_last_bits`` included.
        budget: What they were allowed to take.
        metric: What the losses are: "sqnr" (relative squared error of the outputs) or "jf" (percent).
        first_last_bits: Bits of those first and last layers that ``bits`` does not name.
    """

    bits: dict[str, int]
    loss: float
    bytes: int
    budget: int
    metric: str
    first_last_bits: int = 8

    def qconfig(self, activation_bits: int | None) -> dict[str, QConfigMapping]:
        """The assignment as ``prepare_qsam2`` takes it, weights and inputs by learnable statistical clipping.

        Layers that it does not name stay float, except first and last layers, which get ``first_last_bits``. As in
        the presets, inputs of first and last layers have no fewer bits than their weights.

        Args:
            activation_bits: Bits of the layers' inputs, 2 to 8; None keeps them in float.

        Returns:
            Region name -> mapping.

        Raises:
            QConfigError: Bits out of range.

        Example:
            >>> prepared = prepare_qsam2(model, assignment.qconfig(8))
        """
        mapping = QConfigMapping().set_global(None)
        for name, bits in self.bits.items():
            inputs = activation_bits
            if activation_bits is not None and is_first_or_last(name):
                inputs = max(activation_bits, bits)
            mapping.set_module_name(name, lsc_qconfig(bits, inputs))
        edge_inputs = None if activation_bits is None else max(activation_bits, self.first_last_bits)
        for pattern in EXCEPTED_LAYERS:
            mapping.set_module_name_regex(pattern, lsc_qconfig(self.first_last_bits, edge_inputs))
        return dict.fromkeys(REGIONS, mapping)

    def check_model(self, model: SAM2Base) -> None:
        """Refuse a model that has other layers, and warn of one whose layers have other sizes.

        Args:
            model: A float model of the ``SAM2Base`` family.

        Raises:
            QConfigError: The model lacks a layer of the assignment, or has one that it does not name, which would
                stay in float; the message names it.
        """
        layers = quantizable_layers(model)
        if absent := [name for name in self.bits if name not in layers]:
            raise QConfigError(
                f"the model has no layer {absent[0]!r}, which the assignment gives {self.bits[absent[0]]} bits "
                f"({len(absent)} such layers); it was measured on another model{did_you_mean(absent[0], layers)}"
            )
        missing = [name for name in layers if name not in self.bits and not is_first_or_last(name)]
        if missing:
            raise QConfigError(
                f"the assignment has no bits for the layer {missing[0]!r} ({len(missing)} such layers), which would "
                "stay in float; measure all layers of this model"
            )
        taken = sum(each.packed_bytes(self.bits.get(name, self.first_last_bits)) for name, each in layers.items())
        if taken != self.bytes:
            logger.warning(
                "the assignment says that its layers take %d bytes, and this model's take %d: it was measured on a "
                "model of another size, or changed by hand",
                self.bytes,
                taken,
            )

    def counts(self) -> dict[int, int]:
        """Bits -> number of layers, from few bits to many."""
        return dict(sorted(Counter(self.bits.values()).items()))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as :meth:`save` writes it."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: object) -> Assignment:
        """The assignment of :meth:`to_dict`, strictly.

        Args:
            values: What JSON gave.

        Returns:
            The assignment.

        Raises:
            QConfigError: Another format or version, a missing or unknown field, or a value of the wrong kind.
        """
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise QConfigError(f"not an assignment of bits: it should be an object with the format {FORMAT!r}")
        if values.get("version") != VERSION:
            raise QConfigError(
                f"version {values.get('version')!r} of the format; this qsam2_ao reads version {VERSION}"
            )
        names = {"format", "version", *(field.name for field in fields(cls))}
        if unknown := sorted(set(values) - names):
            raise QConfigError(f"unknown field {unknown[0]!r}; the fields are {', '.join(sorted(names))}")
        if missing := sorted(names - set(values)):
            raise QConfigError(f"the field {missing[0]!r} is missing")
        bits = values["bits"]
        if not isinstance(bits, dict) or not bits:
            raise QConfigError("'bits' should be an object of layers and their bits, with one layer at least")
        widths = {**{f"bits of {name!r}": b for name, b in bits.items()}, "first_last_bits": values["first_last_bits"]}
        for where, value in widths.items():
            if type(value) is not int or not 2 <= value <= 8:
                raise QConfigError(f"{where} should be 2 to 8, not {value!r}")
        for field in ("bytes", "budget"):
            if type(values[field]) is not int or values[field] < 0:
                raise QConfigError(f"{field!r} should be a number of bytes, not {values[field]!r}")
        loss = values["loss"]
        if type(loss) not in (int, float) or not math.isfinite(loss):
            raise QConfigError(f"'loss' should be a finite number, not {loss!r}")
        if not isinstance(values["metric"], str):
            raise QConfigError(f"'metric' should be a name, not {values['metric']!r}")
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON.

        Args:
            path: The file.

        Raises:
            QSAM2Error: It cannot be written.
        """
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Assignment:
        """Read what :meth:`save` wrote, strictly.

        Args:
            path: The file.

        Returns:
            The assignment.

        Raises:
            QConfigError: There is no such file, or it is not one; the message names it and what is wrong.

        Example:
            >>> recipe = Assignment.load("bits.json").qconfig(8)
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except OSError as error:
            raise QConfigError(f"{path}: {error.strerror}; check the path") from error
        except QConfigError as error:  # a ValueError too
            raise QConfigError(f"{path}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise QConfigError(f"{path} is not JSON ({error})") from error
