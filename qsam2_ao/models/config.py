"""A SAM2 model's construction as plain data, the model built from it, and the same model in another class."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from ..compat import adapt_predictors
from ..compat.lock import PATCHING
from ..compat.random import OwnGenerator
from ..compat.registration import meta_parameters, one_table
from ..errors import CheckpointError, GraphTraceError, QSAM2Error
from ..stage import stage_of
from .describe import (
    DESCRIBERS,
    INFERENCE_SETTINGS,
    class_path,
    constructor_parameters,
    describes_model,
    known_class,
    overridden_methods,
)

_PARTS = ("image_encoder", "memory_attention", "memory_encoder")
#: Arguments that read a file or compile code; a config may only carry their defaults.
_REFUSED = {"weights_path": None, "compile_image_encoder": False}
Model = TypeVar("Model", bound=nn.Module)


def model_config(model: nn.Module) -> dict[str, Any]:
    """Describe a SAM2 model by the classes and arguments that build it, laid out like SAM2's own configs.

    The description is checked: what it builds has the model's modules, tensor names and shapes, and settings.
    A model whose parts were replaced (prepared or quantized) carries the config of its parts in
    its stage.

    Args:
        model: A model of the SAM2Base family. A user's subclass is described as its nearest SAM2 class.

    Returns:
        Nested dicts and lists of JSON's types with the classes' import paths as ``"_target_"``.

    Raises:
        GraphTraceError: A module is of a class that isn't SAM2's, or was changed after it was built; the
            message names the module.

    Example:
        >>> model_config(build_official("sam2.1-t"))["image_encoder"]["trunk"]["embed_dim"]
        96
    """
    if not describes_model(type(model)):
        raise GraphTraceError(
            f"expected a model of the SAM2Base family, got {class_path(type(model))}; build one with sam2.build_sam"
        )
    stored = stage_of(model).config
    parts = {} if stored is None else {name: copy.deepcopy(stored[name]) for name in _PARTS}
    config = _describe(model, {id(module): name for name, module in model.named_modules()}, parts)
    if stored is None:
        _check_same_model(model, build_from_config(config, meta=True))
    return config


def _describe(module: nn.Module, names: dict[int, str], known_parts: Mapping[str, Any]) -> dict[str, Any]:
    name = names.get(id(module)) or "the model"
    target = known_class(type(module))
    if target is None:
        raise GraphTraceError(
            f"{name} is a {class_path(type(module))}, which is not one of SAM2's classes nor derived from "
            "one; use sam2's modules, or subclasses of them with the same constructor"
        )
    if overridden := overridden_methods(type(module), target):
        raise GraphTraceError(
            f"{name} is a {class_path(type(module))}, which overrides {', '.join(overridden)} of {target}; "
            "a config would bring back the original, so only the model itself may override methods"
        )
    try:
        arguments = DESCRIBERS[target](module)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise GraphTraceError(f"{name} ({class_path(type(module))}) was changed after it was built: {error}") from error
    described: dict[str, Any] = {"_target_": target}
    for key in sorted(arguments):
        value = arguments[key]
        if key in known_parts:
            described[key] = known_parts[key]
        elif isinstance(value, nn.Module):
            described[key] = _describe(value, names, {})
        else:
            described[key] = _plain(value, f"{name}.{key}")
    return described


def _plain(value: object, name: str) -> Any:
    """JSON's types only: OmegaConf's containers and tuples become dicts and lists."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, torch.Tensor):
        return [_plain(item, name) for item in value]
    raise GraphTraceError(f"{name} is a {class_path(type(value))}, which a config cannot hold; use plain values")


def _check_same_model(model: nn.Module, rebuilt: nn.Module) -> None:
    """Refuse a model that its own description would not build again."""
    modules, others = dict(model.named_modules()), dict(rebuilt.named_modules())
    for name in sorted(modules.keys() ^ others.keys()):
        verb = "was added to" if name in modules else "was removed from"
        raise GraphTraceError(f"module {name} {verb} the model after SAM2 built it; start from an unchanged model")
    for name, other in others.items():
        module = modules[name]
        if not isinstance(module, type(other)):
            raise GraphTraceError(
                f"{name} is a {class_path(type(module))} where SAM2 has a {class_path(type(other))}; "
                "start from an unchanged model"
            )
        for key, value in vars(other).items():
            # Empty dicts are caches that fill while the model runs; the decoder is compared itself.
            if key.startswith("_") or key in ("training", "sam_mask_decoder_extra_args") or value == {}:
                continue
            if not _is_plain(value):
                continue
            mine = getattr(module, key, None)
            if not _is_plain(mine) or _plain(mine, key) != _plain(value, key):
                raise GraphTraceError(
                    f"{name or 'the model'}.{key} is {mine!r} where its config gives {value!r}; "
                    "pass it to the constructor instead of changing the finished model"
                )
    shapes, expected = ({key: value.shape for key, value in m.state_dict().items()} for m in (model, rebuilt))
    for key in shapes.keys() | expected.keys():
        if shapes.get(key) != expected.get(key):
            raise GraphTraceError(
                f"{key} has shape {shapes.get(key)} where its config gives {expected.get(key)}; "
                "start from an unchanged model"
            )


def _is_plain(value: object) -> bool:
    try:
        _plain(value, "")
    except GraphTraceError:
        return False
    return not isinstance(value, nn.Module)


@torch.inference_mode(False)
def build_from_config(
    config: Mapping[str, Any], *, meta: bool = False, model_class: type[Model] | None = None
) -> Model:
    """Build a model from :func:`model_config`'s description or the ``model`` part of a config of SAM2's.

    Only SAM2's own classes are built, so that a config read from a file cannot run anything else. The global
    random state is left as it was.

    Args:
        config: The description.
        meta: Put parameters on the meta device, without memory or values; buffers are real, and the equal tables of
            frequencies that the rotary attention layers hold (4 MiB each at 1024 px) are one.
        model_class: Build this class of the SAM2Base family instead of the config's. Arguments that only the
            config's own class knows are left out.

    Returns:
        The model on the CPU, in eval mode, with random weights.

    Raises:
        CheckpointError: The config names another class, an unknown argument, or values that don't fit
            together.

    Example:
        >>> model = build_from_config(model_config(predictor), meta=True)
    """
    adapt_predictors()
    with (
        PATCHING,
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
        OwnGenerator(),
        meta_parameters() if meta else nullcontext(),
        one_table() if meta else nullcontext(),
    ):
        model = _build(config, "model", model_class)
    return model.eval()


def _build(config: Any, name: str, model_class: type | None = None) -> Any:
    target = config.get("_target_") if isinstance(config, Mapping) else None
    if not isinstance(target, str) or target not in DESCRIBERS:
        raise CheckpointError(
            f"{name}._target_ is {target!r}, which is not one of the classes that a config may build; "
            f"they are {', '.join(sorted(DESCRIBERS))}"
        )
    if not isinstance(model_class, type | None):
        raise CheckpointError(f"model_class must be a class such as SAM2Base, not {model_class!r}")
    cls = _imported(target) if model_class is None else model_class
    accepted, dropped = constructor_parameters(cls), set()
    if model_class is not None:
        dropped = _own_arguments(target, config) - accepted.keys()
    arguments: dict[str, Any] = {}
    for key, value in config.items():
        if key == "_target_" or key in dropped:
            continue
        if key not in accepted:
            raise CheckpointError(f"{name}.{key} is not an argument of {class_path(cls)}; remove it from the config")
        if key in _REFUSED and value != _REFUSED[key]:
            raise CheckpointError(f"{name}.{key} must be {_REFUSED[key]!r} in a config, got {value!r}")
        if isinstance(value, Mapping) and "_target_" in value:
            arguments[key] = _build(value, f"{name}.{key}")
            continue
        try:
            plain = _plain(value, f"{name}.{key}")
        except GraphTraceError as error:
            raise CheckpointError(str(error)) from error
        # JSON has no tuples.
        arguments[key] = tuple(plain) if isinstance(accepted[key].default, tuple) and isinstance(plain, list) else plain
    try:
        return cls(**arguments)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise CheckpointError(
            f"{name}: {class_path(cls)} cannot be built from its config: {type(error).__name__}: {error}"
        ) from error


def _imported(target: str) -> type:
    """A class of the sam2 package by its path.

    Its trainer is a top-level package named ``training``, as other projects have one, of which nothing may run.
    """
    module_name, _, class_name = target.rpartition(".")
    package = module_name.partition(".")[0]
    found, own = (importlib.util.find_spec(name) for name in (package, "sam2"))
    places = [Path(spec.origin).parents[1] if spec is not None and spec.origin else None for spec in (found, own)]
    if places[0] is None or places[0] != places[1]:
        raise CheckpointError(
            f"{target} is needed, and {package!r} here is {found.origin if found else 'not installed'}, not the sam2 "
            "package's: load the model as another class (model_class=SAM2VideoPredictor), or rename yours"
        )
    try:
        return getattr(importlib.import_module(module_name), class_name)  # type: ignore[no-any-return]
    except ImportError as error:
        raise CheckpointError(
            f"{target} cannot be imported ({error}): install what it needs, or load the model as another class "
            "(model_class=SAM2VideoPredictor)"
        ) from error


def _own_arguments(target: str, config: Mapping[str, Any]) -> set[str]:
    """What the constructor of a config's class takes, or the config's own names where that class is not to be had."""
    try:
        return set(constructor_parameters(_imported(target)))
    except CheckpointError:
        return set(config)


def as_class(model: nn.Module, model_class: type[Model], **overrides: Any) -> Model:
    """The same model as an object of another SAM2 class, sharing every submodule, parameter and buffer.

    For example a ``SAM2VideoPredictor`` as ``SAM2Train`` and back. Nothing is copied: training one trains the
    other.

    Args:
        model: A model of the SAM2Base family, also a prepared or a quantized one.
        model_class: ``SAM2Base``, ``SAM2VideoPredictor``, ``SAM2Train`` or a subclass with their constructor.
        overrides: Constructor arguments that only ``model_class`` has, or some of ``INFERENCE_SETTINGS``.
            Those not given are taken from ``model`` where it has them, otherwise they are the class's
            defaults.

    Returns:
        The new object, in the same train/eval mode.

    Raises:
        QSAM2Error: An override is unknown or would change the network itself.
        GraphTraceError: ``model`` is not a SAM2 model.

    Example:
        >>> train = as_class(predictor, SAM2Train, num_correction_pt_per_frame=1)
    """
    base = importlib.import_module("sam2.modeling.sam2_base").SAM2Base
    if not (isinstance(model_class, type) and issubclass(model_class, base)):
        raise QSAM2Error(f"model_class must be SAM2Base or derived from it, got {model_class!r}")
    settings = constructor_parameters(model_class).keys() - constructor_parameters(base).keys()
    settings = (settings | set(INFERENCE_SETTINGS)) - {"freeze_image_encoder"}
    for name in overrides:
        if name not in settings:
            raise QSAM2Error(
                f"{name} is not a setting of {model_class.__name__} that an existing model can be given; "
                f"those are {', '.join(sorted(settings))}"
            )
    # A throwaway instance has what the class's constructor adds, at no cost in memory.
    pattern = build_from_config({**model_config(model), **overrides}, meta=True, model_class=model_class)
    result = model_class.__new__(model_class)
    for key, value in {**vars(pattern), **vars(model)}.items():
        # Own registries of parameters, modules and hooks, holding the same objects.
        result.__dict__[key] = copy.copy(value) if isinstance(value, (dict, set)) else value
    for name in overrides:
        result.__dict__[name] = getattr(pattern, name)
    return result


def rehouse(model: nn.Module, model_class: type[Model], **overrides: Any) -> Model:
    """The old name of :func:`as_class`."""
    warnings.warn("rehouse is called as_class now", DeprecationWarning, stacklevel=2)
    return as_class(model, model_class, **overrides)
