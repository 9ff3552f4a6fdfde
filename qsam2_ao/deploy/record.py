"""The record of what is quantized in a deployed model: enough to rebuild its graphs around the tensors of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import CheckpointError
from ..graph import Part
from ..quantizers.affine import GRANULARITIES

_KINDS = ("linear", "conv2d")


@dataclass(frozen=True)
class LayerRecord:
    """One quantized layer.

    Attributes:
        region: Region of SAM2, for example "image_encoder".
        part: Path of the graph in the model, for example "image_encoder".
        layer: Name of the layer inside the graph, for example "trunk.blocks.0.attn.qkv".
        kind: "linear" or "conv2d".
        shape: Shape of the weight.
        bits: Bits per weight.
        granularity: "tensor", "channel" or "group": what shares one scale.
        group_size: Inputs that share a scale when the granularity is "group".
        grid: Name of the weight's grid ("midrise", "symmetric", ...), or of the quantizer that made the codes.
        activation: Name of the input quantizer in the graph; None when the input stays float. Layers that read
            the same tensor share one.
        activation_bits: Bits of the input's codes.
    """

    region: str
    part: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    bits: int
    granularity: str
    group_size: int | None
    grid: str
    activation: str | None
    activation_bits: int | None

    @property
    def name(self) -> str:
        """The layer's path in the model."""
        return Part(self.region, self.part).layer_name(self.layer)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON-able values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerRecord:
        """Read back ``to_dict``'s result.

        Raises:
            CheckpointError: A field is missing, unknown or out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            odd = sorted(set(values) ^ known)[0]
            raise CheckpointError(f"the plan of layer {values.get('layer')!r} has a missing or unknown field {odd!r}")
        record = cls(**{**values, "shape": tuple(values["shape"])})
        if (
            not all(isinstance(text, str) for text in (record.region, record.part, record.layer, record.grid))
            or not isinstance(record.activation, (str, type(None)))
            or record.kind not in _KINDS
            or record.granularity not in GRANULARITIES
            or not isinstance(record.bits, int)
            or not 2 <= record.bits <= 8
            or not all(isinstance(n, int) and n > 0 for n in record.shape)
        ):
            raise CheckpointError(f"the plan of layer {record.name!r} cannot be used: {record}")
        return record
