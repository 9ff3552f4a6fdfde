"""What people put around a model or into it, and what to do about it before it can be quantized."""

from __future__ import annotations

from torch import nn

from ..errors import GraphTraceError, UnsupportedLayerError

#: Class of the wrapper -> the attribute that has the model.
_AROUND = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "AveragedModel": "module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "SAM2ImagePredictor": "model",
    "SAM2AutomaticMaskGenerator": "predictor.model",
}


def check_plain_weight(name: str, layer: object) -> None:
    """Refuse a linear layer or convolution whose weight a hook makes anew at each call.

    Args:
        name: What the message calls the layer.
        layer: Any module.

    Raises:
        UnsupportedLayerError: Its weight is no parameter.

    Example:
        >>> check_plain_weight("head", nn.Linear(2, 1))
    """
    if isinstance(layer, (nn.Linear, nn.Conv2d)) and "weight" not in layer._parameters:
        raise UnsupportedLayerError(
            f"the weight of {name} is no parameter: a hook makes it of other tensors, as torch.nn.utils.prune and the "
            "old weight_norm and spectral_norm do; make it plain first, with prune.remove(layer, 'weight'), "
            "remove_weight_norm(layer) or remove_spectral_norm(layer)"
        )


def check_bare(model: object, caller: str) -> None:
    """Refuse a model that something is wrapped around, or whose adapters (LoRA) are not merged, by name.

    Args:
        model: What was handed in as a model.
        caller: The function that it was handed to, for the message.

    Raises:
        GraphTraceError: It is wrapped, or a layer has an adapter; the message says how to get at the model.
        UnsupportedLayerError: A layer's weight is made of other tensors by a hook.

    Example:
        >>> check_bare(nn.DataParallel(model), "prepare_qsam2")  # doctest: +SKIP
    """
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if any(cls.__module__.startswith("peft.") for cls in type(model).__mro__):
        raise GraphTraceError(
            f"{caller} got a {type(model).__name__} of peft: merge first, with model = model.merge_and_unload()"
        )
    if wrapper := next((name for name in _AROUND if name in kinds), None):
        where = _AROUND[wrapper]
        raise GraphTraceError(
            f"{caller} got a {type(model).__name__} around the model: hand it what is inside, "
            f"{caller}(model.{where}, ...)"
        )
    if not isinstance(model, nn.Module):
        return
    for name, module in model.named_modules():
        if adapters := sorted(child for child, _ in module.named_children() if child.startswith("lora_")) or sorted(
            key for key, _ in module.named_parameters(recurse=False) if key.startswith("lora_")
        ):
            raise GraphTraceError(
                f"{name or 'the model'} has an adapter ({', '.join(adapters)}): merge first (of peft: "
                "model.merge_and_unload()), since the weight that computes is that of the layer and the adapter"
            )
        if type(module).__name__ == "OptimizedModule":
            raise GraphTraceError(
                f"{name} was compiled by torch.compile: hand over the model as it was before, or set it back to "
                f"model.{name}._orig_mod, and compile the result"
            )
        if hasattr(module, "parametrizations"):
            raise GraphTraceError(
                f"{name} computes its {', '.join(module.parametrizations)} anew from other tensors: make them plain "  # type: ignore[union-attr, arg-type]
                "first, with torch.nn.utils.parametrize.remove_parametrizations"
            )
        check_plain_weight(name, module)
