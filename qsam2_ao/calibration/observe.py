"""Passes of a float model over calibration images, in which the inputs of its layers are observed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from ..graph.paths import is_inside
from ..progress import tqdm
from .exercise import exercise, inference
from .gram import InputStatistics, VRCObserver
from .images import CalibrationImages
from .kept import KeptCalibration, Pass

IMAGE_ENCODER = "image_encoder"
# A Gram matrix is made of so many rows for each of its columns over all images, and at least so many. More of them cost
# as much as the model's own passes and change little.
_ROWS_PER_COLUMN, _FEWEST_ROWS = 8, 20480


def observed_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    images: CalibrationImages,
    *,
    batch_size: int = 1,
    seed: int = 0,
    max_gram_bytes: int = 1 << 30,
    progress: bool = True,
    without: Collection[str] = (),
    keep: KeptCalibration | None = None,
) -> Iterator[tuple[str, InputStatistics]]:
    """Layers with the statistics of their inputs, in as many passes over the images as memory asks for.

    Args:
        model: The model; its mode is restored.
        layers: Linear layers and 1x1 convolutions by name.
        images: Calibration images.
        batch_size: Images per forward pass.
        seed: Of the prompts.
        max_gram_bytes: Memory for Gram matrices.
        progress: Show progress bars.
        without: Layers that are not needed any more; the others' passes are the same.
        keep: Where an interrupted pass is kept.

    Yields:
        Name and statistics.
    """
    chunks = list(in_chunks(layers, max_gram_bytes))
    for k, chunk in enumerate(chunks):
        wanted = [name for name in chunk if name not in without]
        if not wanted:
            continue
        part = f" {k + 1}/{len(chunks)}" if len(chunks) > 1 else ""
        observers = observe_inputs(
            model,
            {name: layers[name] for name in chunk},
            images,
            batch_size=batch_size,
            seed=seed,
            progress=f"observing{part}" if progress else None,
            keep=keep,
            name=f"observing {k}",
        )
        for name in tqdm(wanted, desc=f"solving{part}", unit="layer", disable=not progress):
            yield name, observers.pop(name).statistics()


def observe_inputs(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    images: CalibrationImages,
    *,
    batch_size: int = 1,
    seed: int = 0,
    progress: str | None = None,
    keep: KeptCalibration | None = None,
    name: str = "observing",
) -> dict[str, VRCObserver]:
    """What the inputs of ``layers`` are while ``model`` runs on ``images``.

    Args:
        model: The model; its mode is restored.
        layers: Linear layers and 1x1 convolutions by name. Where all are the image encoder's, it runs alone,
            without prompts.
        images: Calibration images.
        batch_size: Images per forward pass.
        seed: Of the prompts.
        progress: Title of a progress bar.
        keep: Where an interrupted pass is kept.
        name: What tells the pass from others there.

    Returns:
        One observer per layer, summed over all data-parallel ranks. Of a layer's inputs, those that are more than 8
        per column and more than 20480 are left out, evenly over images and positions.
    """
    observers: dict[str, VRCObserver] = {}
    hooks = []
    for path, layer in layers.items():
        observers[path] = make_observer(path, cast(Tensor, layer.weight), len(images), batch_size)
        hooks.append(layer.register_forward_pre_hook(feed(observers[path]), with_kwargs=True))
    over = Pass() if keep is None else _kept_pass(keep, name, model, observers)
    try:
        if all(is_inside(path, IMAGE_ENCODER) for path in layers):
            batches = images.batches(model, batch_size, progress, over.done)
            with inference(model):
                for done, batch in enumerate(batches, over.done + 1):
                    model.get_submodule(IMAGE_ENCODER)(batch)
                    over.after(done, None)
        else:
            exercise(model, images, batch_size=batch_size, seed=seed, progress=progress, over=over)
    finally:
        for hook in hooks:
            hook.remove()
    for observer in observers.values():
        observer.synchronize()
    return observers


def _kept_pass(keep: KeptCalibration, name: str, model: nn.Module, observers: Mapping[str, VRCObserver]) -> Pass:
    device = next(model.parameters()).device

    def load(state: Mapping[str, Any]) -> None:
        for path, observer in observers.items():
            # The observers of layers that are solved are gone.
            if path in state:
                observer.go_on(state[path], device)

    return keep.over(name, lambda: {path: observer.progress() for path, observer in observers.items()}, load)


def make_observer(name: str, weight: Tensor, inputs: int, batch_size: int = 1) -> VRCObserver:
    """An observer of a layer's inputs that leaves out rows beyond what its Gram matrix needs.

    Args:
        name: Of the layer.
        weight: Of a linear layer, [out, in], or a 1x1 convolution, [out, in, 1, 1].
        inputs: How many images or batches the layer is going to see.
        batch_size: How many of them in one call.
    """
    wanted = max(_ROWS_PER_COLUMN * weight.shape[1], _FEWEST_ROWS) * batch_size
    layout = "nchw" if weight.dim() == 4 else "last"
    return VRCObserver(layout, name=name, max_rows=math.ceil(wanted / max(1, inputs)))


def feed(observer: VRCObserver) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """A forward pre-hook, with keyword arguments, that shows a layer's inputs to an observer."""
    thread = threading.get_ident()

    def hook(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if threading.get_ident() == thread:  # another one may use the same model
            observer(inputs[0] if inputs else named["input"])

    return hook


def in_chunks(layers: Mapping[str, nn.Module], max_bytes: int) -> Iterator[list[str]]:
    """Layer names in groups whose float64 Gram matrices fit ``max_bytes`` (one layer at least)."""
    chunk: list[str] = []
    used = 0
    for name, layer in layers.items():
        size = 8 * cast(Tensor, layer.weight).shape[1] ** 2
        if chunk and used + size > max_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk
