"""The torch.ao BackendConfig of this backend: which operators are quantized, and with which dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.ao.nn.qat as nnqat
import torch.ao.nn.quantized.reference as nnqr
from torch import Tensor, nn
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    ObservationType,
    get_native_backend_config,
)

from ..graph import Part
from ..quantizers import snap_weights


class QATLinear(nnqat.Linear):
    """torch.ao's linear layer in training; converting it puts a weight that LSC quantizes on its grid first."""

    def to_float(self) -> nn.Linear:
        """The float layer that torch.ao's conversion starts from."""
        snap_weights(self)
        layer: nn.Linear = super().to_float()
        return layer


class QATConv2d(nnqat.Conv2d):
    """torch.ao's convolution in training; converting it puts a weight that LSC quantizes on its grid first."""

    def to_float(self) -> nn.Conv2d:
        """The float layer that torch.ao's conversion starts from."""
        snap_weights(self)
        layer: nn.Conv2d = super().to_float()
        return layer


class PaddedReferenceConv2d(nnqr.Conv2d):
    """torch.ao's reference convolution for other padding than zeros, which that one would pad with.

    torch.ao's ``convert_fx`` does not know it, and leaves it between its quantize and dequantize operations.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with the dequantized weight.

        Args:
            x: [N, in, H, W].
        """
        return self._conv_forward(x, self.get_weight(), self.bias)

    @classmethod
    def from_float(  # type: ignore[override]
        cls, float_conv: nn.Conv2d, weight_qparams: dict[str, Any]
    ) -> nnqr.Conv2d:
        """The reference layer of a float one: torch.ao's own where that pads as the float one does.

        Args:
            float_conv: The float layer.
            weight_qparams: torch.ao's description of the weight's quantization.
        """
        layer: nnqr.Conv2d = nnqr.Conv2d.from_float(float_conv, weight_qparams)
        if layer.padding_mode != "zeros":
            layer.__class__ = cls
        return layer


# Float layer -> the module that fake-quantizes its weight during training.
QAT_MODULES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QATLinear, nn.Conv2d: QATConv2d}
_REFERENCE_MODULES: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: nnqr.Linear, nn.Conv2d: PaddedReferenceConv2d}

_WEIGHT_AND_INPUT = DTypeConfig(
    input_dtype=torch.quint8, output_dtype=torch.quint8, weight_dtype=torch.qint8, bias_dtype=torch.float
)
_WEIGHT_ONLY = DTypeConfig(
    input_dtype=torch.float, output_dtype=torch.float, weight_dtype=torch.qint8, bias_dtype=torch.float
)


def layers_of_part(part: Part, module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """The float layers of a part that can be quantized, by their paths in the model.

    Args:
        part: Which part it is.
        module: The part, as a module or as a graph.
    """
    for name, layer in module.named_modules():
        if type(layer) in QAT_MODULES:
            yield part.layer_name(name), cast("nn.Linear | nn.Conv2d", layer)


def qsam2_backend_config() -> BackendConfig:
    """Linear and Conv2d layers with quantized weights, and quantized or float inputs.

    Everything else (attention, normalization, residual additions, transposed convolutions) stays float. Integer
    grids of fewer than 8 bits live inside the 8-bit dtypes that torch.ao knows. Any network can be prepared and
    converted with it, by all of torch.ao's conversions in graph mode; operations that torch.ao's ``convert_fx`` runs
    on the codes as they are (ReLU, pooling, reshaping) have the range of their input.

    Returns:
        A config for ``torch.ao.quantization.quantize_fx``'s ``prepare_qat_fx`` and, the same one, its ``convert_fx``,
        ``convert_to_reference_fx`` and ``_convert_to_reference_decomposed_fx``.

    Example:
        >>> mapping = QConfigMapping().set_global(lsc_qconfig(4, 8))
        >>> prepared = prepare_qat_fx(network.train(), mapping, inputs, backend_config=qsam2_backend_config())
        >>> loss = prepared(inputs).square().mean()  # and train it
        >>> quantized = convert_fx(prepared.eval(), backend_config=qsam2_backend_config())
    """
    patterns = []
    for float_class, qat_class in QAT_MODULES.items():
        # One pattern for the float layer (to be swapped) and one for the swapped layer (to get an input
        # fake-quantizer): with the first alone torch.ao quantizes nothing, without a word.
        for pattern in (float_class, qat_class):
            patterns.append(
                BackendPatternConfig(pattern)
                .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
                .set_dtype_configs([_WEIGHT_AND_INPUT, _WEIGHT_ONLY])
                .set_root_module(float_class)
                .set_qat_module(qat_class)
                .set_reference_quantized_module(_REFERENCE_MODULES[float_class])
            )
    # What torch.ao's kernels run on codes keeps their scale: quantized with a range of its own, the result is lost.
    patterns += [
        config
        for config in get_native_backend_config().configs
        if config.observation_type == ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
    ]
    return BackendConfig("qsam2").set_backend_pattern_configs(patterns)
