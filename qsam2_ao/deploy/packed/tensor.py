"""A weight stored as packed integer codes that ``nn.Linear`` and ``nn.Conv2d`` use like any other weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from ...compat.deferred import torchao_utils
from ...errors import CheckpointError, UnsupportedLayerError
from ...quantizers.affine import broadcast_qparam, dequantize_affine
from . import bitpack
from .form import check_parts, qparam_shape

if TYPE_CHECKING:
    from torchao.utils import TorchAOBaseTensor
else:
    TorchAOBaseTensor = torchao_utils().TorchAOBaseTensor

_INNER = ("codes", "scale", "zero_point")
_SPEC = {"shape", "bits", "granularity", "group_size", "dtype"}


class PackedIntxTensor(TorchAOBaseTensor):
    """An integer weight of 2 to 8 bits in exactly that many bits per value, with its scale and zero point.

    It stands for ``(u - zero_point) * scale`` with unsigned codes ``u``, and equals to the bit what
    quantization-aware training computed with, since both use :mod:`qsam2_ao.quantizers.affine`. Signed codes
    are stored with an offset: ``u = q - quant_min``, ``zero_point - quant_min``. ``F.linear`` and
    ``F.conv2d`` dequantize it in float32, cast to the input's dtype and run the float kernel; gradients reach
    the input, never the weight. Other operations raise :class:`~qsam2_ao.errors.UnsupportedLayerError`
    instead of silently becoming float.

    Make one with :meth:`from_codes`, :meth:`from_inner` or :meth:`empty`; the constructor itself checks
    nothing.

    Attributes:
        codes: The packed codes, uint8 ``[ceil(n / 8) * bits]``, laid out as in
            :mod:`qsam2_ao.deploy.packed.bitpack`.
        scale: float32 ``[1]`` (per tensor), ``[out]`` (per channel) or ``[out, ceil(K / group_size)]`` (per
            group).
        zero_point: float32, the shape of ``scale``; half-integers on the mid-rise grid.
        bits: Bits per code.
        group_size: Inputs per group along ``weight.reshape(out, -1)``; None unless per group.
        dtype: The dtype that the weight appears to have (what ``.to(dtype)`` changes); storage does not
            depend on it.

    Example:
        >>> codes = torch.tensor([[0, 1], [2, 3]])
        >>> weight = PackedIntxTensor.from_codes(codes, torch.tensor([0.5]), torch.tensor([1.5]), bits=2)
        >>> weight.dequantize()
        tensor([[-0.7500, -0.2500],
                [ 0.2500,  0.7500]])
        >>> linear = torch.nn.Linear(2, 2)
        >>> linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    """

    tensor_data_names = list(_INNER)  # noqa: RUF012 (the names are TorchAOBaseTensor's protocol)
    tensor_attribute_names = ["bits", "shape", "group_size", "dtype"]  # noqa: RUF012

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    group_size: int | None

    def __new__(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        shape: Sequence[int],
        group_size: int | None,
        dtype: torch.dtype,
    ) -> PackedIntxTensor:
        """Wrap the parts without checking them."""
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, tuple(shape), dtype=dtype, device=codes.device, requires_grad=False
        )

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        shape: Sequence[int],
        group_size: int | None,
        dtype: torch.dtype,
    ) -> None:
        self.codes = codes
        self.scale = scale
        self.zero_point = zero_point
        self.bits = bits
        self.group_size = group_size

    @classmethod
    def from_codes(
        cls,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bits: int,
        group_size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> PackedIntxTensor:
        """Pack integer codes with their quantization parameters.

        Args:
            codes: Unsigned codes ``0 .. 2**bits - 1`` in the weight's shape, any integer dtype.
            scale: ``[1]``, ``[out]`` or ``[out, ceil(K / group_size)]``, finite; kept in float32.
            zero_point: The shape of ``scale``, finite; kept in float32.
            bits: Bits per code, 2 to 8.
            group_size: Inputs per group, if the scale is per group.
            dtype: The floating dtype that the weight appears to have.

        Returns:
            The packed weight on the device of ``codes``.

        Raises:
            UnsupportedLayerError: Shapes, dtypes or values that do not fit together.
            NonFiniteError: NaN or infinity in the scale or zero point.
        """
        # [1] is "channel" for a single output channel and "tensor" otherwise; both compute the same.
        granularity = "group" if group_size is not None else "tensor" if scale.shape == (1,) else "channel"
        inner = {
            "codes": bitpack.pack(codes, bits),
            "scale": scale.detach().to(codes.device, torch.float32, copy=True),
            "zero_point": zero_point.detach().to(codes.device, torch.float32, copy=True),
        }
        check_parts(inner, codes.shape, bits, granularity, group_size, dtype, error=UnsupportedLayerError)
        return cls(**inner, bits=bits, shape=codes.shape, group_size=group_size, dtype=dtype)

    @classmethod
    def empty(
        cls,
        shape: Sequence[int],
        bits: int,
        granularity: str = "channel",
        group_size: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> PackedIntxTensor:
        """A packed weight whose content is unspecified, on the meta device a mere description of one.

        Args:
            shape: Shape of the weight.
            bits: Bits per code, 2 to 8.
            granularity: "tensor", "channel" or "group".
            group_size: Inputs per group, for "group" alone.
            dtype: The floating dtype that the weight appears to have.
            device: Where to put it.

        Returns:
            A packed weight of that form.

        Raises:
            UnsupportedLayerError: The arguments do not fit together.
        """
        bitpack.check_bits(bits)
        qparams = qparam_shape(shape, granularity, group_size)
        return cls(
            torch.empty(bitpack.packed_size(math.prod(shape), bits), dtype=torch.uint8, device=device),
            torch.empty(qparams, dtype=torch.float32, device=device),
            torch.empty(qparams, dtype=torch.float32, device=device),
            bits,
            shape,
            group_size,
            dtype,
        )

    @classmethod
    def from_inner(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PackedIntxTensor:
        """Put a packed weight together from what :meth:`spec` and :meth:`inner_tensors` gave, strictly.

        Args:
            spec: Exactly the keys that :meth:`spec` returns.
            tensors: Exactly the tensors that :meth:`inner_tensors` returns; used without a copy.

        Returns:
            The packed weight.

        Raises:
            CheckpointError: A key or tensor is missing, unknown, or of the wrong type, dtype, shape or
                device.
            NonFiniteError: NaN or infinity in the scale or zero point.
        """
        if set(spec) != _SPEC:
            raise CheckpointError(
                f"the description of a packed weight has the keys {sorted(_SPEC)}, not {sorted(spec)}"
            )
        if set(tensors) != set(_INNER):
            raise CheckpointError(f"a packed weight has the tensors {sorted(_INNER)}, not {sorted(tensors)}")
        dtype = getattr(torch, spec["dtype"], None) if isinstance(spec["dtype"], str) else None
        shape = spec["shape"]
        if not isinstance(dtype, torch.dtype):
            raise CheckpointError(f"unknown dtype {spec['dtype']!r} of a packed weight")
        if not isinstance(shape, list | tuple) or not all(type(size) is int for size in shape):
            raise CheckpointError(f"the shape of a packed weight is a list of integers, not {shape!r}")
        try:
            check_parts(tensors, shape, spec["bits"], spec["granularity"], spec["group_size"], dtype, CheckpointError)
        except UnsupportedLayerError as unsupported:
            raise CheckpointError(f"not a packed weight: {unsupported}") from unsupported
        return cls(
            **{name: tensors[name] for name in _INNER},
            bits=spec["bits"],
            shape=tuple(shape),
            group_size=spec["group_size"],
            dtype=dtype,
        )

    def spec(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON-able values: shape, bits, granularity, group_size, dtype."""
        return {
            "shape": list(self.shape),
            "bits": self.bits,
            "granularity": self.granularity,
            "group_size": self.group_size,
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def inner_tensors(self) -> dict[str, Tensor]:
        """The plain tensors to store: codes, scale, zero_point (no copies)."""
        return {name: getattr(self, name) for name in _INNER}

    @property
    def granularity(self) -> str:
        """ "tensor", "channel" or "group"; a single output channel counts as "tensor"."""
        if self.group_size is not None:
            return "group"
        return "tensor" if self.scale.shape == (1,) else "channel"

    @property
    def nbytes_packed(self) -> int:
        """Bytes of storage: codes, scale and zero point."""
        return sum(tensor.nbytes for tensor in self.inner_tensors().values())

    def unpack(self) -> Tensor:
        """The unsigned codes, uint8 in the weight's shape."""
        return bitpack.unpack(self.codes, self.bits, math.prod(self.shape)).reshape(self.shape)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as an ordinary tensor.

        Args:
            dtype: The result's dtype, by default the dtype that this tensor appears to have.

        Returns:
            ``(codes - zero_point) * scale``, computed in float32, then cast to ``dtype``.
        """
        scale, zero_point = (
            broadcast_qparam(qparam, self.shape, self.group_size) for qparam in (self.scale, self.zero_point)
        )
        return dequantize_affine(self.unpack(), scale, zero_point).to(self.dtype if dtype is None else dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        group = f", group_size={self.group_size}" if self.group_size is not None else ""
        return (
            f"PackedIntxTensor(bits={self.bits}, shape={tuple(self.shape)}, "
            f"granularity={self.granularity!r}{group}, dtype={self.dtype}, device={self.device})"
        )

    def _stable_hash_for_caching(self) -> str:
        """What torch.compile's cache may depend on, besides the inner tensors' own properties."""
        return repr(self.spec())

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one of the operations below; refuse any other by name."""
        if func not in cls._ATEN_OP_TABLE[cls]:
            raise UnsupportedLayerError(
                f"{func} is not supported on a packed weight, only linear, conv2d, copies and moves between "
                "devices are; call .dequantize() for an ordinary tensor"
            )
        return cls._ATEN_OP_TABLE[cls][func](func, types, args, kwargs or {})


_implements = PackedIntxTensor.implements
_implements_torch_function = PackedIntxTensor.implements_torch_function
_aten = torch.ops.aten


# F.linear and F.conv2d are caught as torch functions so that autograd (for the input) and autocast see the
# float kernel; the aten forms are what is left where torch functions are switched off.
@_implements_torch_function([torch.nn.functional.linear, torch.nn.functional.conv2d])
@_implements([_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding, _aten.convolution.default])
def _run_dequantized(func: Callable[..., Tensor], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    arguments = dict(zip(("input", "weight"), args, strict=False)) | kwargs
    x, weight = arguments.pop("input"), arguments.pop("weight")
    if isinstance(x, PackedIntxTensor) or not isinstance(weight, PackedIntxTensor):
        raise UnsupportedLayerError(f"{func}: a packed tensor can only be the weight, not the input or bias")
    dtype = x.dtype if x.is_floating_point() else None
    return func(x, weight.dequantize(dtype), *args[2:], **arguments)


@_implements_torch_function([torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__])  # type: ignore[attr-defined]
def _refuse_grad(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    if (kwargs or {}).get("requires_grad", args[1] if len(args) > 1 else True):
        raise UnsupportedLayerError(
            "a packed weight cannot require gradients: wrap it in nn.Parameter(weight, requires_grad=False), "
            "and train the prepared model instead of the converted one"
        )
    return args[0]


@_implements_torch_function(torch.Tensor.detach)
def _detach(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    # Inference mode has no version counter for the result, and autograd asks the wrapper for one.
    with torch.inference_mode(False):
        if torch.compiler.is_compiling():
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        # Not through torch's dispatcher, as nn.Parameter would: at the first operation on a tensor of another class it
        # imports DTensor, which takes as long as loading a model.
        self = args[0]
        inner = {name: tensor.detach() for name, tensor in self.inner_tensors().items()}
        return PackedIntxTensor(**inner, bits=self.bits, shape=self.shape, group_size=self.group_size, dtype=self.dtype)


@_implements(_aten.clone.default)
@_implements_torch_function(torch.Tensor.contiguous)
def _clone(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    # Codes have one layout: a memory format (channels_last, for the other tensors of a model) changes
    # nothing.
    if func is torch.Tensor.contiguous:
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, args[0]._apply_fn_to_data(torch.clone))


@_implements_torch_function(torch.Tensor.share_memory_)
def _share(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Any:
    # The wrapper has no storage of its own: torch would crash.
    for tensor in args[0].inner_tensors().values():
        tensor.share_memory_()
    return args[0]


@_implements_torch_function(torch.Tensor.is_shared)
def _is_shared(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> bool:
    return all(tensor.is_shared() for tensor in args[0].inner_tensors().values())


@_implements(_aten._to_copy.default)
def _to_copy(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedIntxTensor:
    self = args[0]
    dtype = kwargs.get("dtype") or self.dtype
    if not dtype.is_floating_point:
        raise UnsupportedLayerError(
            f"a packed weight appears as a floating dtype, not {dtype}; see .unpack() for codes"
        )
    device, non_blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
    inner = {
        name: tensor.to(device or tensor.device, non_blocking=non_blocking, copy=True)
        for name, tensor in self.inner_tensors().items()
    }
    copy = PackedIntxTensor(**inner, bits=self.bits, shape=self.shape, group_size=self.group_size, dtype=dtype)
    return return_and_correct_aliasing(func, args, kwargs, copy)


@_implements(_aten.copy_.default)
def _copy(func: Callable[..., Any], types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> PackedIntxTensor:
    target, source = args[:2]
    if not isinstance(target, PackedIntxTensor) or not isinstance(source, PackedIntxTensor):
        raise UnsupportedLayerError(
            f"cannot copy a {type(source).__name__} into a {type(target).__name__}: packed weights are only "
            "copied into packed weights (call .dequantize() on the source, or convert the model before "
            "loading packed weights)"
        )
    ours, theirs = ({**tensor.spec(), "dtype": None} for tensor in (target, source))
    if ours != theirs:
        raise UnsupportedLayerError(f"cannot copy a packed weight {source!r} into {target!r}")
    for name, tensor in target.inner_tensors().items():
        tensor.copy_(getattr(source, name), non_blocking=args[2] if len(args) > 2 else False)
    return target


# Lets models with packed weights be loaded with torch.load(..., weights_only=True).
# State dicts that torch.save wrote before version 0.2 have it by its old path.
torch.serialization.add_safe_globals([PackedIntxTensor, (PackedIntxTensor, "qsam2_ao.tensors.packed.PackedIntxTensor")])
