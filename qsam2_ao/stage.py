"""What qsam2_ao made of a model: the one record that a prepared or packed model carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import nn

from .compat import adapt_predictors

if TYPE_CHECKING:
    from .deploy.record import LayerRecord

# Scripts read the report of a calibration as `model.qsam2_info["vrc"]`.
_ATTRIBUTE = "qsam2_info"


class LayerTarget(NamedTuple):
    """What a layer was lowered to.

    Attributes:
        target: Name of the target that it runs on.
        reason: Why that is not the one that was asked for; None if it is.
    """

    target: str
    reason: str | None


@dataclass(frozen=True)
class ModelStage:
    """How far a model has come, and how it got there. It is not changed: a later stage is another record.

    Attributes:
        config: The configuration that builds the float model, as ``model_config`` gives it, since the parts of a
            quantized one describe themselves no more; None if it has none.
        info: How it was made: recipe, seed, the report of the calibration; None for a float model.
        layers: Every quantized layer of a converted or deployed model.
        targets: Name of each of those in a deployed model -> what it was lowered to.
        unsaved: Why it has no configuration and cannot be saved; None if it can.
        images_only: Its memory was never given weights, so that it segments images but cannot track.
    """

    config: Mapping[str, Any] | None = None
    info: Mapping[str, Any] | None = None
    layers: tuple[LayerRecord, ...] = ()
    targets: Mapping[str, LayerTarget] = field(default_factory=dict)
    unsaved: str | None = None
    images_only: bool = False

    @property
    def name(self) -> Literal["float", "prepared", "converted", "deployed"]:
        """Fake-quantized is prepared; with packed weights, converted; given a target by loading it, deployed."""
        if self.layers:
            return "deployed" if self.targets else "converted"
        return "float" if self.info is None else "prepared"

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read what pickle has; in a new process this may be the first that says whose model it is."""
        vars(self).update(state)
        adapt_predictors()

    def __getitem__(self, key: str) -> Any:
        """``info[key]``."""
        return (self.info or {})[key]


def stage_of(model: nn.Module) -> ModelStage:
    """Read a model's record.

    Args:
        model: Any model; copies and other classes of one (``as_class``) have the same.

    Returns:
        The record; an empty one for a float model.

    Example:
        >>> stage_of(prepare_qsam2(model, "w4a8")).name
        'prepared'
    """
    stage = getattr(model, _ATTRIBUTE, None)
    return stage if isinstance(stage, ModelStage) else ModelStage()


def set_stage(model: nn.Module, stage: ModelStage) -> None:
    """Give a model another record, in place.

    Args:
        model: Any model.
        stage: The record, usually ``dataclasses.replace`` of the one that it has.

    Example:
        >>> set_stage(model, replace(stage_of(model), info={"seed": 0}))
    """
    setattr(model, _ATTRIBUTE, stage)
