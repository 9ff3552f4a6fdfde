"""How to train, as one record that ``qsam2 quantize``, ``qsam2 finetune`` and Python share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import QConfigError
from ..graph import REGIONS, check_regions

#: Peak learning rate with weights of 2 bits: better than 5e-4 in 150 steps of embedded-256 at W2A4 on every validation
#: set.
RATE = 1e-3
#: From 3 bits on, as a share of that. In 150 steps at W3A8 1e-3 and 3e-4 left the image encoder farther from the float
#: one than calibration had (0.0067 and 0.0057, from 0.0042, as shares of its variance), 1e-4 nearer (0.0039).
SHARE_FROM_3_BITS = 0.1
#: Of clipping ranges, as a multiple of that: they are learned as logarithms. In 150 steps of embedded-256 at W2A4 ten
#: times was better than once by 1.3 to 4.0 points in three of six validation scores, and as good in the others.
RANGE_RATE = 10.0
#: Peak learning rate of a float model.
FLOAT_RATE = 1e-5


def rate_at(bits: float) -> float:
    """Peak learning rate of weights that have so many bits.

    Example:
        >>> rate_at(2), rate_at(4)
        (0.001, 0.0001)
    """
    return RATE if bits <= 2 else RATE * SHARE_FROM_3_BITS


@dataclass(frozen=True)
class TrainingSettings:
    """A training, apart from its data and its seed.

    Attributes:
        steps: Steps of the optimizer.
        lr: Peak learning rate of weights; None for :func:`rate_at` their bits with quantizers, :data:`FLOAT_RATE`
            without.
        range_lr: Peak learning rate of the clipping ranges; None for :data:`RANGE_RATE` times that of weights.
        batch_size: Clips of a step, over all processes and parts; None for one a process and part (four of procedural
            clips, which are small).
        accumulate: Parts of a step that go through the model one after the other, for less memory.
        bf16: Run the forward pass in bfloat16 where autocast does.
        frames: Frames of a clip, at most.
        objects: Objects of a clip, at most.
        freeze: Regions that are not trained; their ranges stay too.
        ema: Decay of the averaged weights; None averages about the last fifth of what is done.
        augment: Mirror, crop and recolour the clips.
        validate_every: Steps between two judgements by held-out batches; None for a fifth of the steps.
        workers: Processes that read the data; 0 reads in the training's own.

    Raises:
        QConfigError: A number that cannot be, an unknown region, or all of them frozen.

    Example:
        >>> TrainingSettings(500, batch_size=8, accumulate=2).clips_at_once(ranks=2)
        2
    """

    steps: int
    lr: float | None = None
    range_lr: float | None = None
    batch_size: int | None = None
    accumulate: int = 1
    bf16: bool = False
    frames: int = 4
    objects: int = 3
    freeze: tuple[str, ...] = ()
    ema: float | None = None
    augment: bool = False
    validate_every: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "accumulate", "frames", "objects", "batch_size", "validate_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise QConfigError(f"{name} of a training must be positive, not {value}")
        if self.lr is not None and self.lr <= 0:
            raise QConfigError(f"lr of a training must be positive, not {self.lr}")
        for name in ("range_lr", "workers"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise QConfigError(f"{name} of a training must not be negative, but is {value}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise QConfigError(f"ema is a decay of at least 0 and below 1, such as 0.999, not {self.ema}")
        check_regions(self.freeze)
        if set(REGIONS) <= set(self.freeze):
            raise QConfigError("every region is frozen; leave at least one to be trained")

    def clips_at_once(self, ranks: int, default: int = 1) -> int:
        """Clips that go through the model at once in one process.

        Args:
            ranks: Number of processes.
            default: What it is where ``batch_size`` is None.

        Raises:
            QConfigError: The batch cannot be dealt out evenly.
        """
        if self.batch_size is None:
            return default
        clips, rest = divmod(self.batch_size, ranks * self.accumulate)
        if rest:
            raise QConfigError(
                f"a batch of {self.batch_size} clips cannot be dealt to {ranks} processes x {self.accumulate} parts; "
                f"choose a multiple of {ranks * self.accumulate}"
            )
        return clips

    @property
    def recorded(self) -> dict[str, Any]:
        """What the result depends on, as plain values."""
        values = asdict(self)
        del values["workers"]
        return {**values, "freeze": list(self.freeze)}
