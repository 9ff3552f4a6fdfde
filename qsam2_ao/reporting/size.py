"""How many bytes a model takes, beside what it would take unquantized."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from ..errors import CheckpointError


@dataclass(frozen=True)
class ModelSize:
    """Bytes of a model's parameters and saved buffers.

    Attributes:
        values: Number of values, packed or not.
        float32_bytes: What they would take in float32.
        bfloat16_bytes: What they would take in bfloat16, the Q-SAM2 paper's reference (arXiv 2506.09782).
        actual_bytes: What they take: packed codes, scales and zero points for packed weights.
        packed_values: Number of values that are in packed weights.
        packed_bytes: What the packed weights take.
    """

    values: int
    float32_bytes: int
    bfloat16_bytes: int
    actual_bytes: int
    packed_values: int
    packed_bytes: int

    @property
    def compression(self) -> float:
        """How many times smaller the model is than in bfloat16."""
        return self.bfloat16_bytes / self.actual_bytes

    @property
    def bits_per_packed_value(self) -> float | None:
        """Bits stored per packed weight, scales and zero points included; None where nothing is packed."""
        return 8 * self.packed_bytes / self.packed_values if self.packed_values else None

    def to_dict(self) -> dict[str, float | None]:
        """All of it as JSON-able values."""
        return {
            **asdict(self),
            "compression": self.compression,
            "bits_per_packed_value": self.bits_per_packed_value,
        }


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor's values take, looking into tensor subclasses such as packed weights.

    Args:
        tensor: Any tensor, also one on the meta device.

    Returns:
        The bytes; a view counts with its own values, not with its base's.

    Example:
        >>> tensor_bytes(torch.zeros(3, 5))
        60
    """
    inner = _inner(tensor)
    return tensor.nbytes if inner is None else sum(tensor_bytes(part) for part in inner)


def _inner(tensor: Tensor) -> list[Tensor] | None:
    """The tensors that a wrapper subclass is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return None
    names, _ = tensor.__tensor_flatten__()
    return [getattr(tensor, name) for name in names]


def model_size(model: nn.Module) -> ModelSize:
    """Measure a model: a float, prepared, converted or loaded one.

    Args:
        model: Any module. Shared parameters count once; buffers that are not saved do not count.

    Returns:
        Its size.

    Raises:
        CheckpointError: The model has no tensors at all.

    Example:
        >>> model_size(nn.Linear(10, 2)).actual_bytes
        88
    """
    seen: set[int] = set()
    values = actual = packed_values = packed_bytes = 0
    for tensor in model.state_dict(keep_vars=True).values():
        if not isinstance(tensor, Tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        size = tensor_bytes(tensor)
        values += tensor.numel()
        actual += size
        if _inner(tensor) is not None:
            packed_values += tensor.numel()
            packed_bytes += size
    if not values:
        raise CheckpointError(f"{type(model).__name__} has no parameters or buffers to measure")
    return ModelSize(values, 4 * values, 2 * values, actual, packed_values, packed_bytes)


def file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file.

    Raises:
        CheckpointError: There is no such file.
    """
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; check the path") from error


def human_bytes(size: float) -> str:
    """A size for people, in units of 1024.

    Example:
        >>> human_bytes(5_452_595), human_bytes(12)
        ('5.2 MiB', '12 B')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
