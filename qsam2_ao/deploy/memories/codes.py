"""Memories as the 8-bit codes that memory attention rounds them to anyway, in half the bytes of bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...errors import UnsupportedLayerError
from ...quantizers.affine import dequantize_affine, quantize_affine
from ..inputs import ActivationQuantizer
from ..kernels.codes import CodeGrid
from ..record import LayerRecord

_aten = torch.ops.aten


class MemoryCodes(Tensor):
    """Codes that move and are copied as codes, and that every other operation reads as bfloat16.

    Attributes:
        codes: uint8, of the tensor's shape.
        grid: What they stand for.

    Example:
        >>> memory = MemoryCodes(torch.tensor([130, 126], dtype=torch.uint8), CodeGrid(0.5, 128.0, 255))
        >>> memory + 1
        tensor([2., 0.], dtype=torch.bfloat16)
    """

    codes: Tensor
    grid: CodeGrid
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, codes: Tensor, grid: CodeGrid) -> MemoryCodes:
        """Wrap codes."""
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, codes.shape, dtype=torch.bfloat16, device=codes.device, requires_grad=False
        )

    def __init__(self, codes: Tensor, grid: CodeGrid) -> None:
        # The wrapper says that it is contiguous, and views are chosen by that.
        self.codes, self.grid = codes.contiguous(), grid

    def dequantize(self) -> Tensor:
        """The values, bfloat16: near enough for the same grid to give the same codes again."""
        return dequantize_affine(self.codes, *_parameters(self.codes, self.grid)).to(torch.bfloat16)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"MemoryCodes({list(self.shape)}, {self.grid}, device={self.device})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return MemoryCodes, (self.codes, self.grid)

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryCodes:
        return self.clone()  # type: ignore[return-value]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Move or copy codes; read them as floats for anything else; refuse to be written to."""
        kwargs = kwargs or {}
        if func is _aten._to_copy.default and kwargs.get("dtype") in (None, torch.bfloat16):
            settings = {name: value for name, value in kwargs.items() if name in ("device", "non_blocking")}
            return cls(args[0].codes.to(**settings), args[0].grid)
        if func in (_aten.clone.default, _aten.detach.default):
            return cls(func(args[0].codes), args[0].grid)
        if _writes_codes(func._schema, args, kwargs):
            raise UnsupportedLayerError(
                f"{func} would write into a memory that is kept as codes; call .dequantize() for a tensor of floats"
            )
        args, kwargs = tree_map_only(MemoryCodes, MemoryCodes.dequantize, (args, kwargs))
        return func(*args, **kwargs)


def _writes_codes(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operator would write to codes: also to ``out``, or to one of a list."""
    given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
    written = [a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return any(isinstance(leaf, MemoryCodes) for name in written for leaf in tree_leaves(given.get(name)))


class KeepCodes:
    """Rounds memories to codes: bfloat16 ``[B, C, H, W]`` -> :class:`MemoryCodes`.

    One with NaN or infinities stays as it is, since codes would hide them.
    """

    def __init__(self, grid: CodeGrid) -> None:
        self.grid = grid

    def __call__(self, memory: Tensor) -> Tensor:
        """Round one."""
        if isinstance(memory, MemoryCodes) or not bool(memory.isfinite().all()):
            return memory
        grid = self.grid
        return MemoryCodes(quantize_affine(memory, *_parameters(memory, grid), 0, grid.high).to(torch.uint8), grid)


def _parameters(like: Tensor, grid: CodeGrid) -> tuple[Tensor, Tensor]:
    scale, zero_point = torch.tensor([grid.scale, grid.zero_point], dtype=torch.float32, device=like.device)
    return scale, zero_point


def memory_grid(memory_attention: nn.Module, layers: tuple[LayerRecord, ...]) -> CodeGrid:
    """The codes that the layers of memory attention read memories as, of which there is one grid for all.

    Args:
        memory_attention: Of a converted or deployed model.
        layers: The model's quantized layers.

    Returns:
        The grid.

    Raises:
        UnsupportedLayerError: The layers read memories as floats, or in different ways.
    """
    readers = [r for r in layers if r.part == "memory_attention" and r.layer.endswith(".cross_attn_image.v_proj")]
    grids = {_grid_of(memory_attention, record) for record in readers}
    found = grids.pop() if len(grids) == 1 else None
    if found is None or found.high > 255:
        raise UnsupportedLayerError(
            "memories cannot be kept as codes: memory attention reads them as floats, or in more than 8 bits; quantize "
            "the inputs of the cross_attn_image.v_proj layers (presets such as w4a8 do), or pass codes=False"
        )
    return found


def _grid_of(part: nn.Module, record: LayerRecord) -> CodeGrid | None:
    lowered: Callable[..., Any] | CodeGrid | None = getattr(part.get_submodule(record.layer), "input_grid", None)
    if isinstance(lowered, CodeGrid):
        return lowered
    if record.activation is None:
        return None
    quantizer = part.get_submodule(record.activation)
    return CodeGrid.of(quantizer) if isinstance(quantizer, ActivationQuantizer) else None
