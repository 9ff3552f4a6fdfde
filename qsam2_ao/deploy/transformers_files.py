"""``save_pretrained`` and ``from_pretrained`` of the transformers library for models with packed weights.

Importing this module registers the method "qsam2" with the library, which must be done before ``from_pretrained``.
A file has each packed weight as three tensors, ``...weight_codes``, ``...weight_scale`` and ``...weight_zero_point``;
how wide the codes are is in ``config.json``. Loading builds the layers from that, and runs no code from the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ..errors import CheckpointError
from .inputs import ActivationQuantizer
from .packed import PackedIntxTensor
from .portable import lower_packed
from .transformers import put_in_front

METHOD = "qsam2"
_INNER = ("codes", "scale", "zero_point")
_LOADED = "_is_hf_initialized"
"""What the library marks the tensors of a file with."""


@register_quantization_config(METHOD)
class QSAM2TransformersConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What ``config.json`` says of the packed layers.

    Attributes:
        quant_method: "qsam2".
        layers: Layer -> ``{"weight": PackedIntxTensor.spec(), "input": [least code, largest code] or None}``.
    """

    def __init__(self, layers: dict[str, dict[str, Any]] | None = None, **_: object) -> None:
        self.quant_method = METHOD
        self.layers = layers or {}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"quant_method": METHOD, "layers": self.layers}


class _Shell(nn.Module):
    """Takes a packed layer's tensors from a file."""

    def __init__(self, layer: nn.Module, spec: dict[str, Any], codes: list[int] | None) -> None:
        super().__init__()
        empty = PackedIntxTensor.empty(
            spec["shape"], spec["bits"], spec["granularity"], spec["group_size"], device="meta"
        )
        for name, tensor in empty.inner_tensors().items():
            self.register_buffer(f"weight_{name}", tensor)
        self.bias = layer.bias
        if codes is not None:
            low, high = codes
            self.input_quantizer = ActivationQuantizer(low, high, device="meta")


@register_quantizer(METHOD)
class QSAM2TransformersQuantizer(HfQuantizer):  # type: ignore[misc]
    """Builds packed layers when the library loads a model, and takes them apart when it saves one."""

    requires_calibration = True

    def __init__(self, quantization_config: QSAM2TransformersConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._layers: dict[str, nn.Module] = {}

    def _process_model_before_weight_loading(self, model: nn.Module, **_: object) -> None:
        for name, about in self.quantization_config.layers.items():
            try:
                layer = model.get_submodule(name)
                shell = _Shell(layer, about["weight"], about["input"])
            except (AttributeError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"config.json: its packed layer {name!r} is not one of the model, or is damaged ({error})"
                ) from error
            self._layers[name] = layer
            model.set_submodule(name, shell)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: object) -> nn.Module:
        shells = {name: model.get_submodule(name) for name in self._layers}
        _check_all_came(shells)
        for name, layer in self._layers.items():
            about, shell = self.quantization_config.layers[name], shells[name]
            inner = {key: getattr(shell, f"weight_{key}") for key in _INNER}
            packed = PackedIntxTensor.from_inner(about["weight"], inner).to(layer.weight.dtype)
            lowered = lower_packed(layer, packed)
            lowered.bias = shell.bias  # type: ignore[assignment]
            if about["input"] is not None:
                loaded: Any = shell.input_quantizer
                low, high = about["input"]
                put_in_front(lowered, ActivationQuantizer(low, high, loaded.scale, loaded.zero_point))
            model.set_submodule(name, lowered.eval())
        self._layers = {}
        return model

    def get_state_dict_and_metadata(self, model: nn.Module, *_: object) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors for a file."""
        state: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            if isinstance(value, PackedIntxTensor):
                state.update({f"{name}_{key}": inner.contiguous() for key, inner in value.inner_tensors().items()})
            else:
                state[name] = value
        return state, {}

    def is_serializable(self, *_: object, **__: object) -> bool:
        """Packed weights are saved."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights don't learn."""
        return False


def _check_all_came(shells: Mapping[str, nn.Module]) -> None:
    """Refuse files without a tensor of a packed layer: the library fills it with what is in memory, and only warns."""
    tensors = {
        f"{layer}.{name}": tensor
        for layer, shell in shells.items()
        for name, tensor in (*shell.named_buffers(), *shell.named_parameters())
    }
    came = {name for name, tensor in tensors.items() if getattr(tensor, _LOADED, False)}
    # None at all has it where the library is a version that marks no tensors.
    if missing := sorted(tensors.keys() - came if came else ()):
        raise CheckpointError(f"{missing[0]} is missing in the model's file; save the model again")


@torch.no_grad()
def attach_quantizer(model: Any) -> None:
    """Let ``save_pretrained`` know what is packed in a model.

    Args:
        model: The library's model, with packed layers.
    """
    layers: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, PackedIntxTensor):
            quantizer = getattr(module, "input_quantizer", None)
            codes = None if quantizer is None else [quantizer.quant_min, quantizer.quant_max]
            layers[name] = {"weight": weight.spec(), "input": codes}
    config = QSAM2TransformersConfig(layers)
    model.config.quantization_config = config
    model.hf_quantizer = QSAM2TransformersQuantizer(config, pre_quantized=True)
    model.is_quantized = True
    model.quantization_method = METHOD
