"""What a SAM2 puts out in every region, recorded while it is exercised, and how far it is from the float model's."""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from ..calibration.exercise import exercise
from ..calibration.images import CalibrationImages, images_at_once
from ..errors import NonFiniteError
from ..quantizers.sampling import even_sample

Outputs = dict[str, list[Tensor]]
"""Name of an output -> a sample of it from each call."""


def _encoder_outputs(result: dict[str, Any]) -> dict[str, Tensor]:
    return {f"image features {k}": features for k, features in enumerate(result["backbone_fpn"])}


def _decoder_outputs(result: tuple[Tensor, ...]) -> dict[str, Tensor]:
    logits, ious, _, object_scores = result
    # A logit that is far from zero can be anything: what counts is the probability.
    return {"masks": logits.sigmoid(), "mask qualities": ious, "object scores": object_scores}


# Where each output is found: the module that computes it, and its outputs out of the module's result.
_SOURCES: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "image_encoder": _encoder_outputs,
    "memory_attention": lambda result: {"conditioned features": result},
    "sam_mask_decoder": _decoder_outputs,
    "memory_encoder": lambda result: {"memory features": result["vision_features"]},
    "obj_ptr_proj": lambda result: {"object pointers": result},
}


class OutputError:
    """How far a model's outputs move when its weights change, against what they were on construction.

    The model segments and tracks in the images (:func:`~qsam2_ao.calibration.exercise.exercise`), so that every region
    runs. Of large outputs an even sample is compared. What the image encoder made of the images is kept and used
    again while only other regions change.

    Args:
        model: A SAM2 model. Its image encoder is wrapped for good: give a copy.
        images: Calibration images.
        seed: Of the prompts.
        max_kept_bytes: Memory for kept image features; those beyond are computed again.

    Raises:
        CalibrationError: Unusable images.

    Example:
        >>> error = OutputError(copy.deepcopy(model), load_images("photos/", max_images=8))
        >>> error.measure(encoder_changed=True)["masks"]
        0.0
    """

    def __init__(self, model: Any, images: CalibrationImages, *, seed: int = 0, max_kept_bytes: int = 2 << 30) -> None:
        self._model = model
        self._batch_size = images_at_once(model)
        # Read and resize the files once.
        tensors = [image for batch in images.batches(model, self._batch_size) for image in batch]
        batches = [SimpleNamespace(flat_img_batch=image) for image in tensors]
        self._images = CalibrationImages(batches, max_images=len(batches))
        self._seed = seed
        self._encoder = _KeptEncoder(model.image_encoder, max_kept_bytes)
        model.image_encoder = self._encoder
        self._boxes: list[Tensor] | None = None
        self._reference = self._run("keep")

    def measure(self, *, encoder_changed: bool) -> dict[str, float]:
        """Relative squared error of each output, |now - reference|^2 / |reference|^2, over all calls.

        An output that was zero everywhere has its squared error.

        Args:
            encoder_changed: Whether a weight of the image encoder is another one than on construction.

        Returns:
            Output's name -> error; those of different layers add up as long as they are small.

        Raises:
            NonFiniteError: An output holds NaN or infinity, naming it.
        """
        outputs = self._run("compute" if encoder_changed else "reuse")
        return {name: _relative_error(name, kept, outputs[name]) for name, kept in self._reference.items()}

    def _run(self, mode: str) -> Outputs:
        self._encoder.start(mode)
        with _recorded(self._model) as outputs:
            # A box is put around what the model segments: a changed one is to be asked the same as it was before.
            self._boxes = exercise(
                self._model, self._images, batch_size=self._batch_size, seed=self._seed, boxes=self._boxes
            )
        return outputs


@contextmanager
def _recorded(model: nn.Module) -> Iterator[Outputs]:
    outputs: Outputs = defaultdict(list)
    thread = threading.get_ident()

    def record(read: Callable[[Any], dict[str, Tensor]]) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            if threading.get_ident() != thread:  # which uses the same model for something else
                return
            for name, tensor in read(result).items():
                outputs[name].append(even_sample(tensor))

        return hook

    hooks = [model.get_submodule(path).register_forward_hook(record(read)) for path, read in _SOURCES.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _relative_error(name: str, reference: list[Tensor], other: list[Tensor]) -> float:
    signal = noise = 0.0
    for before, now in zip(reference, other, strict=True):
        signal += float(before.double().square().sum())
        noise += float((now.double() - before.double()).square().sum())
    if not math.isfinite(signal + noise):
        raise NonFiniteError(f"the model's {name} on the calibration images hold NaN or infinite values")
    return noise / signal if signal > 0 else noise


class _KeptEncoder(nn.Module):
    """The image encoder, which can give again what it gave in the first run over the images."""

    def __init__(self, encoder: nn.Module, max_bytes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._free = max_bytes
        self._kept: list[dict[str, Any]] = []
        self._mode, self._call = "compute", 0

    def start(self, mode: str) -> None:
        """Begin a run over the images: "keep" its results, "reuse" kept ones, or "compute" without either."""
        self._mode, self._call = mode, 0

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Features of the images; the lists in them may be changed by the caller."""
        call, self._call = self._call, self._call + 1
        if self._mode == "reuse" and call < len(self._kept):
            return _copied(self._kept[call])
        result: dict[str, Any] = self.encoder(images)
        if self._mode == "keep" and call == len(self._kept) and (size := _bytes(result)) <= self._free:
            self._kept.append(_copied(result))
            self._free -= size
        return result


def _copied(result: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in result.items()}


def _bytes(result: dict[str, Any]) -> int:
    values = [item for value in result.values() for item in (value if isinstance(value, list) else [value])]
    return sum(value.nbytes for value in values if isinstance(value, Tensor))
