"""What the examples in docstrings take for granted: names of objects, and files in the current folder.

Only what an example mentions is made, once in a run; modules are copied, so that an example may change its own.
"""

from __future__ import annotations

import ast
import builtins
import copy
import importlib
import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import qsam2_ao
from qsam2_ao.data.procedural import Sequence, generate_sequence

MODULES = {"torch": "torch", "np": "numpy", "nn": "torch.nn", "copy": "copy", "math": "math"}
#: Where the other names come from, in this order.
IMPORTED_FROM = (
    "qsam2_ao",
    "qsam2_ao.calibration",
    "qsam2_ao.quantizers",
    "qsam2_ao.quantizers.grids",
    "qsam2_ao.recipe",
    "qsam2_ao.recipe.presets",
    "qsam2_ao.deploy.kernels.linear",
    "qsam2_ao.deploy.kernels.codes",
    "qsam2_ao.deploy.inputs",
    "qsam2_ao.deploy.portable",
    "qsam2_ao.graph",
    "qsam2_ao.graph.tracer",
    "qsam2_ao.predictors",
    "qsam2_ao.segmentation",
    "qsam2_ao.sensitivity",
    "qsam2_ao.data.annotation",
    "qsam2_ao.data.datasets",
    "qsam2_ao.data.davis",
    "qsam2_ao.data.formats.records",
    "qsam2_ao.data.mixture",
    "qsam2_ao.data.procedural",
    "qsam2_ao.data.real.library",
    "qsam2_ao.models.embedded",
    "qsam2_ao.training.qat",
    "qsam2_ao.training.loop",
    "qsam2_ao.training.losses",
    "sam2.sam2_image_predictor",
    "training.model.sam2",
    "torch.ao.quantization",
    "torch.ao.quantization.quantize_fx",
    "torchao.quantization",
    "torchao.quantization.pt2e.quantize_pt2e",
    "dataclasses",
    "pathlib",
    "types",
)
#: What runs only where the int8 kernels do.
NEED_KERNELS = (
    *("load_kernels", "lower_float", "lower_int8", "lower_part", "use_int8_scores", "why_no_kernels"),
    'get_target("int8")',
)


class Objects:
    """The names, each made when it is first asked for."""

    @cached_property
    def model(self) -> nn.Module:
        """A float SAM2: the embedded one, as a video predictor."""
        return qsam2_ao.load_embedded()

    @cached_property
    def prepared(self) -> nn.Module:
        return qsam2_ao.prepare_qsam2(self.model, "w4a8", calibration_data=self.images, vrc=None, progress=False)

    @cached_property
    def quantized(self) -> nn.Module:
        return qsam2_ao.convert_qsam2(self.prepared)

    @cached_property
    def predictor(self) -> nn.Module:
        return self.model

    @cached_property
    def sequence(self) -> Sequence:
        """Three frames of a video of moving objects, with their masks."""
        return generate_sequence("test", 0, num_frames=3)

    @cached_property
    def sequences(self) -> list[Sequence]:
        return [self.sequence]

    @cached_property
    def frames(self) -> Any:
        return self.sequence.frames

    @cached_property
    def images(self) -> list[Any]:
        """Two pictures."""
        return list(self.frames[:2])

    @cached_property
    def image(self) -> Any:
        return self.images[0]

    @cached_property
    def picture(self) -> Image.Image:
        return Image.fromarray(self.image)

    @cached_property
    def masks(self) -> Any:
        """The objects in ``image``: bool [objects, height, width]."""
        return np.stack([self.sequence.masks[0] == i for i in self.sequence.object_ids])

    @cached_property
    def mask(self) -> Any:
        return self.masks[0]

    @cached_property
    def samples(self) -> list[Any]:
        from qsam2_ao.evaluation import image_samples

        return image_samples(self.sequences)

    @cached_property
    def batch(self) -> Any:
        """What SAM2's training takes a step on."""
        from qsam2_ao.training.batches import BatchKind, ProceduralBatches, Stage, to_datapoint

        return to_datapoint(ProceduralBatches((Stage(0, ((BatchKind(1, 2, 1), 1.0),)),))[0])

    @cached_property
    def x(self) -> torch.Tensor:
        """Two pictures as the image encoder takes them."""
        return torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))

    @cached_property
    def batches(self) -> list[torch.Tensor]:
        return [self.x]

    @cached_property
    def network(self) -> nn.Module:
        """A network that isn't SAM2."""
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    @cached_property
    def inputs(self) -> torch.Tensor:
        return torch.randn(16, 8, generator=torch.Generator().manual_seed(0))

    @cached_property
    def linear(self) -> nn.Linear:
        return nn.Linear(8, 4)

    @cached_property
    def packed(self) -> Any:
        """The packed weight of ``linear``."""
        codes = torch.randint(0, 16, (4, 8), generator=torch.Generator().manual_seed(0))
        return qsam2_ao.PackedIntxTensor.from_codes(codes, torch.full((4,), 0.1), torch.full((4,), 7.5), bits=4)

    @cached_property
    def sensitivity(self) -> Any:
        """Of all layers, with made-up losses."""
        from qsam2_ao.sensitivity import LayerSensitivity, Sensitivity, quantizable_layers

        layers = tuple(quantizable_layers(self.model).values())
        records = [
            LayerSensitivity(layer.name, layer.region, bits, layer.packed_bytes(bits), 4.0**-bits, {})
            for layer in layers
            for bits in (2, 3, 4, 8)
        ]
        return Sensitivity("sqnr", layers, tuple(records), {})

    @cached_property
    def assignment(self) -> Any:
        from qsam2_ao.sensitivity import assign_bits, budget_bytes

        return assign_bits(self.sensitivity, budget_bytes("3.5", self.model))


def names(source: str, known: Mapping[str, Any]) -> set[str]:
    """The names that an example takes for granted: neither its module nor Python knows them."""
    free: set[str] = set()
    given = {*known, *vars(builtins)}
    for statement in ast.parse(source).body:
        found = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        arguments = {node.arg for node in ast.walk(statement) if isinstance(node, ast.arg)}
        free |= {node.id for node in found if isinstance(node.ctx, ast.Load)} - given - arguments
        given |= {node.id for node in found if isinstance(node.ctx, ast.Store)}
        given |= {statement.name} if isinstance(statement, ast.FunctionDef) else set()
    return free


def world(source: str, known: Mapping[str, Any]) -> dict[str, Any]:
    """Those names: modules, what examples import, and objects, of which modules are copied."""
    found: dict[str, Any] = {}
    for name in names(source, known):
        if isinstance(vars(Objects).get(name), cached_property):
            value = getattr(objects(), name)
            found[name] = copy.deepcopy(value) if isinstance(value, nn.Module) else value
        elif name in MODULES:
            found[name] = importlib.import_module(MODULES[name])
        else:
            for module in map(importlib.import_module, IMPORTED_FROM):
                if hasattr(module, name):
                    found[name] = getattr(module, name)
                    break
    return found


def _pictures(folder: Path, objects: Objects) -> None:
    folder.mkdir()
    for number, frame in enumerate(objects.frames):
        Image.fromarray(frame).save(folder / f"{number:05d}.jpg")


def _truck(path: Path, objects: Objects) -> None:
    objects.picture.resize((640, 480)).save(path)


def _clip(path: Path, objects: Objects) -> None:
    from qsam2_ao.data.video import write_video

    write_video(path, [objects.image] * 8, fps=Fraction(30))


def _davis(folder: Path, objects: Objects) -> None:
    for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
        (folder / kind / "480p" / "bear").mkdir(parents=True)
        for number in range(3):
            ids = (objects.sequence.masks[number] == objects.sequence.object_ids[0]).astype(np.uint8)
            content = Image.fromarray(objects.frames[number]) if suffix == "jpg" else Image.fromarray(ids).convert("P")
            large = content.resize((854, 480), Image.Resampling.NEAREST)
            large.save(folder / kind / "480p" / "bear" / f"{number:05d}.{suffix}")


def _predicted(folder: Path, objects: Objects) -> None:
    (folder / "bear").mkdir(parents=True)
    for number in range(3):
        ids = (objects.sequence.masks[number] == objects.sequence.object_ids[0]).astype(np.uint8)
        Image.fromarray(ids).convert("P").resize((854, 480), Image.Resampling.NEAREST).save(
            folder / "bear" / f"{number:05d}.png"
        )


def _real_pictures(folder: Path, objects: Objects) -> None:
    from real_pictures import write_library, write_validation

    folder.mkdir()
    write_library(folder / "train")
    write_validation(folder / "validation")


def _packed_file(path: Path, objects: Objects) -> None:
    qsam2_ao.save_qsam2(objects.quantized, path)


def _weights(path: Path, objects: Objects) -> None:
    from qsam2_ao.models.embedded import save_weights

    save_weights(objects.model.state_dict(), path)


def _checkpoint(path: Path, objects: Objects) -> None:
    torch.save({"model": objects.model.state_dict()}, path)


def _bits(path: Path, objects: Objects) -> None:
    path.write_text(json.dumps(objects.assignment.to_dict()))


#: What is written for an example that mentions the name.
FILES: dict[str, Callable[[Path, Objects], None]] = {
    "photos": _pictures,
    "frames": _pictures,
    "truck.jpg": _truck,
    "clip.mp4": _clip,
    "DAVIS": _davis,
    "predicted": _predicted,
    "realdata": _real_pictures,
    "tiny-w4a8.safetensors": _packed_file,
    "embedded.safetensors": _weights,
    "tiny.pt": _checkpoint,
    "bits.json": _bits,
}


@cache
def objects() -> Objects:
    return Objects()
