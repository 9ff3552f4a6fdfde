"""Reading a model's YAML config, as ``hydra.compose`` would if its one search path were ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ..errors import QSAM2Error
from .describe import DESCRIBERS

#: Configs of models take a few kilobytes.
_LARGEST = 1 << 20


def compose(path: Path, *, config_name: str, overrides: list[str]) -> DictConfig:
    """What ``hydra.compose`` makes of a config that is one file, with its ``++key=value`` overrides.

    Args:
        path: The YAML file, laid out like SAM2's own: the model under "model".
        config_name: Hydra's name of it, which is not looked at.
        overrides: Values that replace the file's.

    Returns:
        The config.

    Raises:
        QSAM2Error: The file is broken, empty, of SAM2's trainer or of something else, or would build a class that is
            neither SAM2's nor imported already.

    Example:
        >>> compose(Path("mine.yaml"), config_name="", overrides=["++model.image_size=512"])  # doctest: +SKIP
    """
    config = _read(path)
    try:
        config = OmegaConf.merge(
            config, OmegaConf.from_dotlist([override.removeprefix("++") for override in overrides])
        )
        targets = set(_targets(OmegaConf.to_container(config.model, resolve=True)))
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise QSAM2Error(f"{path}: its model cannot be read ({one_line(error)}); correct it") from error
    for target in sorted(targets, key=str):
        if not _may_be_built(target):
            raise QSAM2Error(
                f"{path} would build {target!r}, which is none of SAM2's classes; a class of your own must be imported "
                "before the config is read"
            )
    assert isinstance(config, DictConfig)
    return config


def _read(path: Path) -> DictConfig:
    try:
        if path.stat().st_size > _LARGEST:
            raise QSAM2Error(f"{path} has more than {_LARGEST >> 20} MiB, which no config of a model has")
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError, RecursionError, AttributeError) as error:
        raise QSAM2Error(
            f"{path} is no YAML file that can be read ({one_line(error)}); correct or copy it again"
        ) from error
    if not isinstance(config, DictConfig) or not config:
        raise QSAM2Error(
            f"{path} is {'empty' if not config else 'a list'}; a model's config has its classes under model"
        )
    if "defaults" in config:
        raise QSAM2Error(f"{path} has a list of defaults, which Hydra composes; write its config out in one file")
    if "trainer" in config and "model" not in config:
        raise QSAM2Error(
            f"{path} configures SAM2's trainer, not a model; name the model that it trains (such as sam2.1-b+), or "
            "the trainer's checkpoint alone, which tells its size"
        )
    model = config._get_node("model")
    if not isinstance(model, DictConfig) or not model or "_target_" not in model:
        keys = ", ".join(str(key) for key in list(config)[:5])
        raise QSAM2Error(f"{path} is no config of a model: it has {keys}, and no class under model._target_")
    return config


def _targets(node: dict[str, Any] | list[Any]) -> Iterator[object]:
    """Every class or function that a config would have called."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "_target_":
            yield value
        elif isinstance(value, (dict, list)):
            yield from _targets(value)


def _may_be_built(target: object) -> bool:
    """Whether it is a class of SAM2's, or a module's class that the program has imported by itself."""
    if not isinstance(target, str):
        return False
    if target in DESCRIBERS:
        return True
    module, _, name = target.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    return isinstance(found, type) and issubclass(found, nn.Module)


def one_line(error: Exception) -> str:
    """An error in one line: YAML's have the place in the lines after the first."""
    return " ".join(str(error).split())[:200] or type(error).__name__
