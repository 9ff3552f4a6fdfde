"""Linear layers and convolutions on oneDNN's products of uint8 codes and int8 weights.

A layer computes ``act((x - zx) w^T sx sw + bias)``, the sum of products exactly. oneDNN ignores zero points of weights
without a word, so ``w`` are their signed values; those that lie between two codes (mid-rise) are doubled. Signed codes
of inputs go to a slow reference, so inputs are unsigned.

Without VNNI, the products of two neighbours are added in 16 bits with saturation. Where that could happen, a weight is
stored as two halves, and multiplied with its input twice.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ...errors import CheckpointError, UnsupportedLayerError
from ..inputs import ActivationQuantizer
from ..integer_products import pair_may_saturate, why_no_integer_products, why_too_large
from ..kernels.codes import NO_GRID, CodeGrid
from ..packed import PackedIntxTensor
from .processor import saturates, why_no_onednn


class OneDNNLinear(nn.Module):
    """A linear layer: codes uint8 ``[..., in]`` -> float32 ``[..., out]``, or the codes of ``grid``.

    Its weight is in a layout of this machine. It goes to copies and to other processes, not into files.

    Attributes:
        scale: Step of each output's weights, float32 ``[out]``.
        zero: Their zero points, which are 0.
        bias: float32 ``[out]``; None without one.
        in_features: Inputs of an output.
        out_features: Outputs.
        halves: Whether the weight is stored as two halves that add up to it.
        activation: "none", "gelu" or "relu".
        input_grid: The codes that come in.
        grid: The 8-bit codes that come out; None for float32.
    """

    scale: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, module: nn.Linear | nn.Conv2d, packed: PackedIntxTensor, grid: CodeGrid) -> None:
        super().__init__()
        values, step = _integers(packed)
        self.out_features, self.in_features = packed.shape[0], packed.shape[1]
        self.halves = _needs_halves(values, grid)
        if self.halves:
            half = values.div(2, rounding_mode="floor")
            values = torch.cat([half, values - half], 1)
        self.register_buffer("scale", (packed.scale.float().flatten() / step).expand(packed.shape[0]).contiguous())
        self.register_buffer("zero", torch.zeros(packed.shape[0], dtype=torch.int64))
        self.register_buffer("bias", None if module.bias is None else module.bias.detach().float())
        self.activation = "none"
        self.grid: CodeGrid | None = None
        self.input_grid = grid
        self._prepare(module)
        # No buffer: such a tensor has no storage that could be shared, counted or moved.
        self._weight = self._pack(values.to(torch.int8))
        self.train(module.training)

    def _prepare(self, module: Any) -> None:
        """Note what the weight's layout depends on."""

    def _pack(self, values: Tensor) -> Tensor:
        return torch.ops.onednn.qlinear_prepack(values, None)

    def _dense(self) -> Tensor:
        return self._weight.to_dense().t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        if self.halves:
            x = torch.cat([x, x], -1)
        scale, zero_point, _ = self.input_grid.arguments
        out = torch.ops.onednn.qlinear_pointwise(
            x.contiguous(), scale, int(zero_point), self._weight, self.scale, self.zero, self.bias, *self._output()
        )
        return out.reshape(*x.shape[:-1], self.out_features)  # of no rows oneDNN forgets the other sizes

    def _output(self) -> tuple[Any, ...]:
        scale, zero_point, _ = self.grid.arguments if self.grid else NO_GRID
        dtype = torch.uint8 if self.grid else torch.float32  # bfloat16 takes seconds where it is emulated
        return scale, int(zero_point), dtype, self.activation, [], "none"

    def extra_repr(self) -> str:
        """Size, and what is folded in."""
        sizes = f"{self.in_features}, {self.out_features}{', halves' if self.halves else ''}"
        return f"{sizes}, {self.activation}, to {self.grid or torch.float32}"

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copies take: the weight in rows."""
        return {**vars(self), "_weight": self._dense()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read what pickle has, where these layers run and the weight does not saturate."""
        super().__setstate__(state)
        if (reason := why_no_onednn(torch.device("cpu"))) is not None:
            raise CheckpointError(f"a pickled model of the target onednn runs where its layers do: {reason} {_ADVICE}")
        values = state["_weight"]
        if not self.halves and _needs_halves(values, self.input_grid):
            raise CheckpointError(f"this model was pickled on a CPU with VNNI, and this one has none. {_ADVICE}")
        self._weight = self._pack(values)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.') or 'this layer'} is lowered to oneDNN's int8 products: load the file with "
            'target="packed" to save it again'
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        probe = fn(torch.empty(1))
        if probe.device.type != "cpu":
            raise UnsupportedLayerError(
                f"a layer lowered to oneDNN's int8 products cannot move to {probe.device.type}: load the file there"
            )
        if probe.is_shared():  # model.share_memory()
            raise UnsupportedLayerError(
                "a layer lowered to oneDNN's int8 products cannot share its memory with other processes: let each "
                "process load the packed file"
            )
        return self  # model.bfloat16() means the float layers; scales stay as they were trained


class OneDNNConv2d(OneDNNLinear):
    """A convolution: codes uint8 ``[B, in, H, W]`` -> float32 ``[B, out, H', W']`` or codes, channels last.

    Attributes:
        kernel: Height and width.
        stride: Down and across.
        padding: Rows and columns of zeros around the image.
        dilation: Down and across.
        groups: Groups of channels.
    """

    def _prepare(self, module: nn.Conv2d) -> None:
        self.kernel, self.stride, self.dilation = module.kernel_size, module.stride, module.dilation
        self.padding, self.groups = module.padding, module.groups

    def _pack(self, values: Tensor) -> Tensor:
        scale, zero_point, _ = self.input_grid.arguments
        return torch.ops.onednn.qconv_prepack(
            values, self.scale, scale, int(zero_point), self.stride, self.padding, self.dilation, self.groups, None
        )

    def _dense(self) -> Tensor:
        kernel = self._weight.shape[-2:]
        return self._weight.to_dense().reshape(self.out_features, -1, *kernel).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        if self.halves:
            x = torch.cat([x, x], 1)
        scale, zero_point, _ = self.input_grid.arguments
        return torch.ops.onednn.qconv_pointwise(
            x.contiguous(memory_format=torch.channels_last),
            scale,
            int(zero_point),
            self._weight,
            self.scale,
            self.zero,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            *self._output(),
        )


def why_not_onednn(
    module: nn.Module,
    packed: PackedIntxTensor,
    device: torch.device | str | None = None,
    quantizer: ActivationQuantizer | None = None,
) -> str | None:
    """Why oneDNN's int8 products cannot run a layer.

    Args:
        module: The float layer.
        packed: Its weight.
        device: Where the layer will run; by default where ``packed`` is.
        quantizer: Of its input; None if that stays float.

    Returns:
        None if they can, else the reason as a sentence for the coverage report.
    """
    target = torch.device(device) if device is not None else packed.device
    reason = why_no_onednn(target) or why_no_integer_products(module, packed, quantizer, "oneDNN's int8 products")
    if reason is not None:
        return reason
    assert quantizer is not None  # by why_no_integer_products
    grid = CodeGrid.of(quantizer)
    try:
        values, _ = _integers(packed)
    except UnsupportedLayerError as error:
        return str(error)
    # The zero point's part is summed on its own.
    code = int(max(grid.high, abs(grid.zero_point)))
    if code * 128 * values[0].numel() >= 2**31:
        sums = values.flatten(1).abs().sum(1, dtype=torch.int64)
        if (reason := why_too_large(packed, code * int(sums.max()))) is not None:
            return reason
    if isinstance(module, nn.Conv2d):
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            padding = module.padding_mode if module.padding_mode != "zeros" else module.padding
            return f"oneDNN's int8 convolutions take padding with zeros, in pixels, not {padding!r}."
        if module.groups != 1 and _needs_halves(values, grid):
            return "Its weights would saturate on this CPU, which has no VNNI, and grouped ones are not halved."
    return None


def lower_onednn(
    module: nn.Linear | nn.Conv2d, packed: PackedIntxTensor, quantizer: ActivationQuantizer
) -> OneDNNLinear:
    """Build the oneDNN layer of a packed one, which takes the codes of ``quantizer``.

    Args:
        module: The float layer, for its bias and geometry; not modified.
        packed: Its weight, on the CPU.
        quantizer: Of its input.

    Returns:
        The layer.

    Raises:
        UnsupportedLayerError: oneDNN cannot run it; the message is the reason of :func:`why_not_onednn`.

    Example:
        >>> quantizer = ActivationQuantizer(0, 255, scale=0.02, zero_point=128.0)
        >>> layer = lower_onednn(linear, packed, quantizer)
        >>> layer(torch.zeros(16, layer.in_features, dtype=torch.uint8)).shape
        torch.Size([16, 4])
    """
    if (reason := why_not_onednn(module, packed, None, quantizer)) is not None:
        raise UnsupportedLayerError(f"cannot lower this layer to oneDNN: {reason}")
    return build_onednn(module, packed, quantizer)


def build_onednn(
    module: nn.Linear | nn.Conv2d, packed: PackedIntxTensor, quantizer: ActivationQuantizer
) -> OneDNNLinear:
    """:func:`lower_onednn` of a layer that :func:`why_not_onednn` has nothing against."""
    kind = OneDNNConv2d if isinstance(module, nn.Conv2d) else OneDNNLinear
    return kind(module, packed, CodeGrid.of(quantizer))


def _integers(packed: PackedIntxTensor) -> tuple[Tensor, int]:
    """The signed values of a weight, int16, and how many there are in a step: 2 on a mid-rise grid, else 1."""
    step = 1 if bool((packed.zero_point == packed.zero_point.round()).all()) else 2
    # What the clamp changes is beyond int8 before and after.
    centre = (packed.zero_point.double() * step).clamp(-(2**14), 2**14).reshape(-1, *[1] * (len(packed.shape) - 1))
    values = packed.unpack().to(torch.int16).mul_(step).sub_(centre.to(torch.int16))
    if bool((centre != centre.round()).any()) or int(values.min()) < -128 or int(values.max()) > 127:
        points = f"{float(packed.zero_point.min())} to {float(packed.zero_point.max())}"
        raise UnsupportedLayerError(
            f"oneDNN's int8 products have no {packed.bits}-bit weights with zero points of {points}."
        )
    return values, step


def _needs_halves(values: Tensor, grid: CodeGrid) -> bool:
    """Whether two products may leave the 16 bits that this CPU adds them in."""
    largest = int(values.to(torch.int16).abs().max())
    return pair_may_saturate(largest, grid.high) and saturates()


_ADVICE = "Take the packed file there, and load it with load_qsam2."
