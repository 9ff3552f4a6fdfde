"""What the target "auto" takes: what is known of a device, and what is timed once on this machine."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor, fx, nn

from ..errors import UnsupportedLayerError
from ..graph import PartGraph, graph_of
from ..native import fast_float, load_kernels, why_no_kernels, why_unfit_for_kernels, why_untimed
from ..native.build import cpu_flags
from ..stage import stage_of
from ..threads import SMALL_SIDE
from .dequantized import SMALL_BYTES, lower_dequantized
from .inputs import ActivationQuantizer
from .kernels.codes import CodeGrid, QuantizeCodes
from .kernels.linear import lower_int8
from .measured import Times, remembered, time_in_turn
from .onednn.passes import lower_part_onednn
from .onednn.processor import why_no_onednn
from .packed import PackedIntxTensor
from .record import LayerRecord

_TOKENS, _WIDTH = 4096, 384
"""Of the blocks that SAM 2.1-T spends most of its time in, at 1024 px."""


class Choice(NamedTuple):
    """What "auto" takes.

    Attributes:
        target: The name of a target.
        reason: Why it is not "int8", as a sentence; None if it is.
        warning: What is to be said aloud, where something is missing that could be had.
    """

    target: str
    reason: str | None
    warning: str | None = None


def choose(
    device: torch.device, model: nn.Module | None = None, *, timed: bool | None = None, folder: Path | None = None
) -> Choice:
    """What "auto" takes on a device, for a model or for large ones.

    "int8" where the kernels run and are known to be fast, unless the processor multiplies bfloat16 in tiles (AMX) and
    two layers are faster so than on the kernels. Elsewhere "onednn", unless the model's image encoder is faster in
    float. Else float, which is "dequantized" for models that are small in float, and "packed" for the others.

    Args:
        device: Where the model will run.
        model: A model with packed weights; without one, it is a large one.
        timed: Whether to time the kernels against bfloat16; by default where there is AMX, since other processors are
            known.
        folder: Where times are kept; by default beside the compiled kernels.

    Returns:
        The target.

    Example:
        >>> choose(torch.device("meta")).target
        'packed'
    """
    untimed = why_untimed(device)
    missing = untimed or missing_kernels(device)
    if missing is None:
        if (slower := _slower_than_bfloat16(device, timed, folder)) is None:
            return Choice("int8", None)
        return Choice("dequantized", slower)
    fallback = "dequantized" if model is not None and _float_bytes(model) <= SMALL_BYTES else "packed"
    in_float = f"the model computes in float{'' if untimed else ', which is slower'}: {missing}"
    if why_no_onednn(device) is not None:
        return Choice(fallback, missing, in_float)
    slower = None if model is None else _slower_than_float(model, fallback, folder)
    # Nothing is amiss on a CPU that the kernels are not for.
    could = why_unfit_for_kernels(device) is None
    if slower is not None:
        return Choice(fallback, f"{missing} {slower}", in_float if could else None)
    warning = f"the model runs on oneDNN's int8 products, which are slower: {missing}"
    return Choice("onednn", missing, warning if could else None)


def missing_kernels(device: torch.device) -> str | None:
    """Load the int8 kernels; why that cannot be done, as a sentence."""
    if (reason := why_no_kernels(device)) is None:
        try:
            load_kernels(device)
        except UnsupportedLayerError as error:
            return str(error)
    return reason


def product_times(folder: Path | None = None) -> Times:
    """Time two layers, the MLP of a block with its activation and rounding: on the kernels, and in torch's bfloat16.

    Args:
        folder: Where times are kept.

    Returns:
        {"int8": milliseconds, "bfloat16": milliseconds}.

    Raises:
        UnsupportedLayerError: The kernels cannot run here.
    """
    of = {"what": "mlp", "tokens": _TOKENS, "width": _WIDTH}
    return remembered(of, ("int8", "bfloat16"), _time_products, folder)


def encoder_times(
    encoder: nn.Module, records: Sequence[LayerRecord], side: int, fallback: str, folder: Path | None = None
) -> Times:
    """Time a packed image encoder on one image: on oneDNN's products, and in float.

    Args:
        encoder: The packed part, on the CPU; not modified.
        records: Its quantized layers.
        side: Of the image, in pixels.
        fallback: "dequantized" or "packed": what float means.
        folder: Where times are kept.

    Returns:
        {"onednn": milliseconds, fallback: milliseconds}.
    """
    of = {"what": "image encoder", "layers": _digest(records), "side": side, "float": fallback}
    return remembered(of, ("onednn", fallback), lambda: _time_encoder(encoder, side, fallback), folder)


def decoder_in_float(model: nn.Module, folder: Path | None = None) -> dict[str, str]:
    """The parts of the mask decoder that are faster in float, of a model whose encoder takes "onednn".

    Most of their products are small, so that what the encoder gains says nothing of them.

    Args:
        model: A model with packed weights, on the CPU; not modified.
        folder: Where times are kept.

    Returns:
        Path of a part -> why, as a sentence; empty also for models without a mask decoder of packed weights.
    """
    records = [record for record in stage_of(model).layers if record.region == "mask_decoder"]
    if not records or not isinstance(model, SAM2Base):
        return {}
    parts: dict[str, list[str]] = {}
    for record in records:
        parts.setdefault(record.part, []).append(record.layer)
    of = {"what": "mask decoder", "layers": _digest(records), "side": model.image_size}
    names = [f"{path} {target}" for path in parts for target in ("onednn", "dequantized")]
    times = remembered(of, names, lambda: _time_decoder(model, parts), folder)
    return {
        path: f"oneDNN's int8 products are slower in this part: it took {ours:.3g} ms, and {theirs:.3g} ms in float."
        for path in parts
        if (ours := times[f"{path} onednn"]) > (theirs := times[f"{path} dequantized"])
    }


def dequantized_part(part: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """A part whose layers of these names have float weights; ``part`` stays as it is."""
    lowered = PartGraph(part, copy.deepcopy(part.graph), compiled=False)
    for name in names:
        lowered.set_submodule(name, lower_dequantized(part.get_submodule(name)))
    lowered.recompile()
    return lowered.eval()


def _slower_than_bfloat16(device: torch.device, timed: bool | None, folder: Path | None) -> str | None:
    """Why the kernels are not the fastest on a device that they run on; None if they are."""
    if timed is None:
        timed = "amx_bf16" in cpu_flags()
    if not timed or device.type != "cpu" or fast_float(device) != torch.bfloat16:
        return None
    times = product_times(folder)
    if times["int8"] <= times["bfloat16"]:
        return None
    return (
        f"This CPU multiplies bfloat16 faster: two layers took {times['bfloat16']:.3g} ms, and {times['int8']:.3g} ms "
        "on the int8 kernels."
    )


def _slower_than_float(model: nn.Module, fallback: str, folder: Path | None) -> str | None:
    """Why oneDNN's products are not the fastest for a model; None if they are.

    Calls of them take longer to prepare than float ones, which counts where images are small; for larger ones they are
    faster, and nothing is timed.
    """
    records = [record for record in stage_of(model).layers if record.part == "image_encoder"]
    side = getattr(model, "image_size", None)
    if not records or not isinstance(side, int) or side > SMALL_SIDE:
        return None
    times = encoder_times(model.get_submodule("image_encoder"), records, side, fallback, folder)
    if times["onednn"] <= times[fallback]:
        return None
    return (
        f"oneDNN's int8 products are slower for images so small: the encoder took {times['onednn']:.3g} ms, and "
        f"{times[fallback]:.3g} ms in float."
    )


def _time_products() -> Times:
    load_kernels()
    generator = torch.Generator().manual_seed(0)
    quantizer = ActivationQuantizer(0, 255, 0.05, 128.0)
    grid = CodeGrid.of(quantizer)
    # Not set at random: loading a model leaves torch's generator as it is.
    layers = [nn.utils.skip_init(nn.Linear, *sizes) for sizes in ((_WIDTH, 4 * _WIDTH), (4 * _WIDTH, _WIDTH))]
    packed = []
    for layer in layers:
        nn.init.zeros_(layer.bias)
        codes = torch.randint(0, 16, layer.weight.shape, generator=generator)
        packed.append(PackedIntxTensor.from_codes(codes, torch.full((1,), 0.01), torch.full((1,), 7.5), 4))
    first, second = (lower_int8(layer, weight, quantizer) for layer, weight in zip(layers, packed, strict=True))
    first.activation, first.grid, codes_of = "gelu", grid, QuantizeCodes(grid)
    weights = [weight.dequantize().bfloat16() for weight in packed]
    x = torch.randn(_TOKENS, _WIDTH, generator=generator).bfloat16()

    def in_bfloat16() -> Tensor:
        return F.linear(quantizer(F.gelu(F.linear(quantizer(x), weights[0]))), weights[1])

    return time_in_turn({"int8": lambda: second(first(codes_of(x))), "bfloat16": in_bfloat16})


def _time_encoder(encoder: nn.Module, side: int, fallback: str) -> Times:
    part = _complete(encoder)
    lowered, reasons = lower_part_onednn(part)
    in_float = part if fallback == "packed" else dequantized_part(part, list(reasons))
    x = torch.zeros(1, 3, side, side)
    return time_in_turn({"onednn": lambda: lowered(x), fallback: lambda: in_float(x)})


@torch.no_grad()
def _time_decoder(model: SAM2Base, parts: Mapping[str, Sequence[str]]) -> Times:
    """Each part on what it is given for one click at the model's own size."""
    decoder = copy.deepcopy(model.sam_mask_decoder)
    given: dict[nn.Module, tuple[Any, Any]] = {}
    lowered: dict[str, dict[str, nn.Module]] = {}
    for path, layers in parts.items():
        part = _complete(model.get_submodule(path))
        lowered[path] = {"onednn": lower_part_onednn(part)[0], "dequantized": dequantized_part(part, layers)}
        decoder.set_submodule(path.removeprefix("sam_mask_decoder."), _Keeping(lowered[path]["dequantized"], given))
    side, width = model.sam_image_embedding_size, model.hidden_dim
    coarse, finer, finest = (
        torch.zeros(1, width, n * side, n * side).to(memory_format=torch.channels_last) for n in (1, 2, 4)
    )
    click = torch.full((1, 1, 2), model.image_size / 2), torch.ones(1, 1, dtype=torch.int32)
    sparse, dense = model.sam_prompt_encoder(points=click, boxes=None, masks=None)
    fine = [decoder.conv_s0(finest), decoder.conv_s1(finer)] if model.use_high_res_features_in_sam else None
    decoder(coarse, model.sam_prompt_encoder.get_dense_pe(), sparse, dense, True, False, fine)
    times: Times = {}
    for path, targets in lowered.items():
        inputs, named = given[targets["dequantized"]]
        runs = {f"{path} {target}": partial(part, *inputs, **named) for target, part in targets.items()}
        times |= time_in_turn(runs)
    return times


class _Keeping(nn.Module):
    """A part that notes what it is called with."""

    def __init__(self, part: nn.Module, given: dict[nn.Module, tuple[Any, Any]]) -> None:
        super().__init__()
        self.part, self.given = part, given

    def forward(self, *inputs: Any, **named: Any) -> Any:
        self.given[self.part] = inputs, named
        return self.part(*inputs, **named)


def _complete(module: nn.Module) -> fx.GraphModule:
    part = graph_of(module)
    if isinstance(part, PartGraph):
        part.complete()
    return part


def _digest(records: Sequence[LayerRecord]) -> str:
    return hashlib.sha256(repr([astuple(record) for record in records]).encode()).hexdigest()[:16]


def _float_bytes(model: nn.Module) -> int:
    return 4 * sum(torch.Size(record.shape).numel() for record in stage_of(model).layers)
