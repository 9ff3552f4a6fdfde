"""A training config by name or path, put together by Hydra as SAM2's own launcher does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from training.utils.train_utils import register_omegaconf_resolvers

from ...compat.rebind import rebound
from ...errors import QConfigError, QSAM2Error
from .options import Options

#: Where names of configs are looked up, behind the folder of a config given by its path.
_SEARCH_PATH = "hydra.searchpath=[pkg://sam2,pkg://qsam2_ao]"
FACTORY = "qsam2_ao.training.official.quantized_sam2"
TRAINER = "qsam2_ao.training.official.QATTrainer"
_STOCK_TRAINER = "training.trainer.Trainer"


def compose_training(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config of a quantization-aware training, checked as far as that needs no data.

    Args:
        name: A name such as "configs/qsam2/sam2.1_hiera_t_w4a8.yaml", of this package or of sam2, or the path of a YAML
            file, whose ``defaults`` may name such configs.
        overrides: Hydra's "key=value".

    Returns:
        The config. Its trainer is :class:`QATTrainer` where it was SAM2's, and ``launcher.experiment_log_dir`` is set.

    Raises:
        QConfigError: No such config or key, or it does not quantize, saying what to change.

    Example:
        >>> compose_training("configs/qsam2/sam2.1_hiera_t_w4a8.yaml", ["scratch.num_epochs=2"]).scratch.num_epochs
        2
    """
    register_resolvers()
    path = Path(name)
    # Hydra is initialised once in a process; leaving the context brings back what there was.
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        context = (
            initialize_config_dir(str(path.resolve().parent), version_base="1.2")
            if path.is_file()
            else initialize_config_module("sam2", version_base="1.2")
        )
        with context:
            config = compose(path.name if path.is_file() else name, [_SEARCH_PATH, *overrides])
    except MissingConfigException as error:
        raise QConfigError(
            f"there is no config {error.missing_cfg_file or name}: give the path of a YAML file, or one of "
            f"{', '.join(own_configs())}"
        ) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise QConfigError(f"{name}: {error}") from error
    finally:
        GlobalHydra.instance().hydra = before
    _check(config, name)
    if config.launcher.experiment_log_dir is None:
        own = path.name.removesuffix(".yaml").removesuffix(".yml")
        config.launcher.experiment_log_dir = os.path.join(os.getcwd(), "sam2_logs", own)
    _resume_as_the_trainer_does(config)
    if config.trainer["_target_"] == _STOCK_TRAINER:
        config.trainer["_target_"] = TRAINER
    try:
        resolved: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise QConfigError(f"{name}: {error}") from error
    Options.read(resolved["trainer"]["model"].get("qsam2"))
    return config


def _resume_as_the_trainer_does(config: DictConfig) -> None:
    """Let the model know of the checkpoint that the trainer goes on from: its recipe must be the config's."""
    wanted = config.trainer.checkpoint.get("resume_from")
    block = config.trainer.model.get("qsam2")
    if wanted is not None and isinstance(block, DictConfig) and block.get("resume_from") is None:
        OmegaConf.update(block, "resume_from", wanted, force_add=True)


def own_configs() -> list[str]:
    """The names of this package's configs."""
    folder = Path(__file__).parents[2] / "configs/qsam2"
    return [f"configs/qsam2/{path.name}" for path in sorted(folder.glob("*.yaml"))]


def _check(config: DictConfig, name: str) -> None:
    for key in ("trainer.model", "trainer.checkpoint", "launcher"):
        if OmegaConf.select(config, key) is None:
            raise QConfigError(f"{name} has no {key}; it is no config of SAM2's training")
    target = config.trainer.model.get("_target_")
    if target != FACTORY:
        raise QConfigError(
            f"{name} does not quantize: trainer.model._target_ is {target}. Set it to {FACTORY} and give "
            "trainer.model.qsam2 a preset, the float checkpoint and a folder to calibrate on"
        )
    if config.trainer.checkpoint.get("model_weight_initializer") is not None:
        raise QConfigError(
            f"{name}: trainer.checkpoint.model_weight_initializer loads float weights after they were calibrated; "
            "set it to null, and trainer.model.qsam2.checkpoint to the file"
        )


class _Replacing(OmegaConf):
    """Registers also what is registered already."""

    @staticmethod
    def register_new_resolver(name: str, resolver: Any, **options: Any) -> None:
        OmegaConf.register_new_resolver(name, resolver, **{**options, "replace": True})


def register_resolvers() -> None:
    """Let configs compute as SAM2's do (``${times:2,3}``); calling it again changes nothing."""
    # A program may have registered some of them, such as "divide": SAM2's function would fail, and do no more.
    if not OmegaConf.has_resolver("times"):
        rebound(register_omegaconf_resolvers, OmegaConf=_Replacing)()


def own_cause(error: BaseException) -> QSAM2Error | None:
    """The error of this package that Hydra wrapped in its own, if there is one.

    Args:
        error: What ``hydra.utils.instantiate`` raised.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, QSAM2Error):
        cause = cause.__cause__
    return cause
