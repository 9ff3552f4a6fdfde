"""Every reader of the package, and whole files of its kind to damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        name: For the command line.
        write: Writes whole files or folders into an empty folder, and returns them.
        read: Reads one, to the end.
        quick: Whether writing and reading take milliseconds.
    """

    name: str
    write: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    quick: bool = True


READERS: dict[str, Reader] = {}


def _reader(name: str, write: Callable[[Path], list[Path]], *, quick: bool = True) -> Callable[[Any], Any]:
    def register(read: Callable[[Path], object]) -> Callable[[Path], object]:
        READERS[name] = Reader(name, write, read, quick)
        return read

    return register


def _pixels(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# --- pictures, masks, videos


def _write_pictures(folder: Path) -> list[Path]:
    picture = Image.fromarray(_pixels())
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "jpg", "webp", "bmp", "gif", "tiff"):
        picture.save(folder / f"rgb.{suffix}", **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
    picture.convert("RGBA").save(folder / "rgba.png")
    picture.convert("P").save(folder / "palette.png")
    Image.fromarray((_pixels()[..., 0].astype(np.int32) * 257).astype(np.uint16)).save(folder / "deep.png")
    Image.fromarray(_pixels()[..., 0].astype(np.float32) / 255).save(folder / "float.tiff")
    picture.save(folder / "interlaced.png", optimize=True)
    picture.save(folder / "progressive.jpg", progressive=True)
    return sorted(folder.iterdir())


@_reader("picture", _write_pictures)
def _read_picture(path: Path) -> None:
    from qsam2_ao.data.pictures import read_rgb

    read_rgb(path)


def _write_masks(folder: Path) -> list[Path]:
    ids = (_pixels()[..., 0] % 3).astype(np.uint8)
    Image.fromarray(ids).save(folder / "ids.png")
    Image.fromarray(ids * 127).convert("P").save(folder / "palette.png")
    Image.fromarray((ids > 0) * np.uint8(255)).convert("1").save(folder / "binary.png")
    Image.fromarray(_pixels()).save(folder / "colours.png")
    return sorted(folder.iterdir())


@_reader("mask", _write_masks)
def _read_mask(path: Path) -> None:
    from qsam2_ao.data.pictures import read_ids
    from qsam2_ao.segmentation import parse_prompts

    read_ids(path)
    parse_prompts((32, 24), masks=[str(path)])


def _write_videos(folder: Path) -> list[Path]:
    from qsam2_ao.data.video import write_video

    frames = [_pixels(seed, 32, 48) for seed in range(4)]
    write_video(folder / "clip.mp4", frames, 10)
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(folder / "clip.gif", save_all=True, append_images=pictures[1:])
    (folder / "frames").mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / "frames" / f"{index:05}.jpg")
    return sorted(folder.iterdir())


@_reader("video", _write_videos)
def _read_video(path: Path) -> None:
    from qsam2_ao.data.video import frame_rate, read_frames

    frame_rate(path)
    for _ in read_frames(path, 8):
        pass


# --- folders of data


def _write_davis(folder: Path) -> list[Path]:
    root = folder / "DAVIS"
    for name in ("bear", "cow"):
        images, masks = root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for index in range(2):
            Image.fromarray(_pixels(index)).save(images / f"{index:05}.jpg")
            Image.fromarray((_pixels(index)[..., 0] % 3).astype(np.uint8)).save(masks / f"{index:05}.png")
    return [root]


@_reader("davis", _write_davis)
def _read_davis(path: Path) -> None:
    from qsam2_ao.data.davis import read_davis

    for sequence in read_davis(path):
        assert len(sequence) == len(list(sequence.frames))
        assert all(sequence.annotation(t) is not None for t in sequence.annotated)
        assert isinstance(sequence.object_ids, tuple)


def _write_datasets(folder: Path) -> list[Path]:
    from data_layouts import save_json, video, write_coco, write_maps, write_panoptic, write_sa1b, write_sav

    sequence = video(frames=3)
    write_sav(folder / "sav", "sav_000001", sequence)
    write_sa1b(folder / "sa-1b", 1, sequence)
    write_coco(folder / "coco", [sequence])
    write_panoptic(folder / "panoptic", sequence)
    write_maps(folder / "youtube-vos/val", "a", sequence)
    objects = {str(i): {"frames": ["00000"]} for i in sequence.object_ids}
    save_json(folder / "youtube-vos/val/meta.json", {"videos": {"a": {"objects": objects}}})
    return sorted(folder.iterdir())


@_reader("datasets", _write_datasets)
def _read_datasets(path: Path) -> None:
    from qsam2_ao.data.datasets import open_dataset

    for video in open_dataset(path, default_split="val"):
        assert isinstance(video.object_ids, tuple)
        for t in video.annotated:
            annotation = video.annotation(t)
            assert annotation is not None
            assert {mask.shape for mask in annotation.masks.values()} <= {video.frames[t].shape[:2]}


def _write_calibration(folder: Path) -> list[Path]:
    root = folder / "photos"
    root.mkdir()
    for index, suffix in enumerate(("jpg", "png")):
        Image.fromarray(_pixels(index)).save(root / f"{index}.{suffix}")
    return [root]


@_reader("calibration", _write_calibration)
def _read_calibration(path: Path) -> None:
    from qsam2_ao.calibration import load_images

    for _ in load_images(path).batches(_small_model()):
        pass


def _write_polygons(folder: Path) -> list[Path]:
    root = folder / "yolo"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    Image.fromarray(_pixels()).save(root / "images" / "a.png")
    (root / "labels" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n3 0.2 0.2 0.8 0.2 0.5 0.9 0.1 0.5\n")
    return [root]


@_reader("polygons", _write_polygons)
def _read_polygons(path: Path) -> None:
    from qsam2_ao.evaluation.polygons import read_polygons

    read_polygons(path)


# --- models


@cache
def _small_model() -> Any:
    """The embedded architecture with fewer blocks: its files are small and open quickly."""
    from qsam2_ao.models.config import build_from_config, model_config
    from qsam2_ao.models.embedded import build_embedded

    config = model_config(build_embedded())
    config["image_encoder"]["trunk"].update(stages=[1, 1, 2, 1], global_att_blocks=[3])
    config["memory_attention"]["num_layers"] = 1
    return build_from_config(config)


@cache
def _small_quantized(preset: str) -> Any:
    from qsam2_ao import convert_qsam2

    return convert_qsam2(_small_model(), preset, [_pixels()], vrc=None, progress=False)


def _tiny_state() -> dict[str, torch.Tensor]:
    """A few tensors that pass for a checkpoint until a model compares them with its own."""
    return {
        "image_encoder.trunk.patch_embed.proj.weight": torch.zeros(4, 3, 7, 7),
        "image_encoder.trunk.blocks.0.norm1.weight": torch.ones(4),
        "no_mem_embed": torch.zeros(1, 1, 4),
    }


def _write_checkpoints(folder: Path) -> list[Path]:
    state = _tiny_state()
    torch.save({"model": state, "epoch": 1, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, folder / "new.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"ema": {f"module.{name}": value for name, value in state.items()}}, folder / "ema.pth")
    torch.save(nn.Linear(2, 2), folder / "whole.pt")
    save_file(state, folder / "state.safetensors", {"format": "pt"})
    hub = folder / "hub"
    hub.mkdir()
    config = {"model_type": "sam2_video", "vision_config": {"backbone_config": {"image_size": [64, 64]}}}
    (hub / "config.json").write_text(json.dumps(config))
    theirs = {"vision_encoder.backbone.patch_embed.projection.weight": torch.zeros(4, 3, 7, 7)}
    theirs["mask_decoder.iou_prediction_head.proj_in.weight"] = torch.zeros(2, 2)
    save_file(theirs, hub / "model.safetensors")
    torch.save({"model": _small_model().state_dict()}, folder / "small.pt")
    return sorted(folder.iterdir())


@_reader("checkpoint", _write_checkpoints)
def _read_checkpoint(path: Path) -> None:
    from qsam2_ao.models.official import load_official_state
    from qsam2_ao.models.sizes import in_words
    from qsam2_ao.models.weights import holds_float_weights, image_size_of, read_checkpoint

    holds_float_weights(path)
    state = read_checkpoint(path)
    in_words(state)
    image_size_of(path)
    load_official_state(_small_model(), state, str(path))


def _write_training(folder: Path) -> list[Path]:
    from qsam2_ao.training.resume import TrainResult, save_checkpoint

    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    save_checkpoint(folder / "training.pt", model, optimizer, TrainResult(step=1, losses=[0.5]), {"lr": 0.1})
    return [folder / "training.pt"]


@_reader("training", _write_training)
def _read_training(path: Path) -> None:
    from qsam2_ao.training.resume import TrainResult, load_checkpoint

    model = nn.Linear(2, 2)
    load_checkpoint(path, model, torch.optim.AdamW(model.parameters()), TrainResult(), {"lr": 0.1})


def _write_yaml(folder: Path) -> list[Path]:
    from qsam2_ao.models.embedded import EMBEDDED_CONFIG

    (folder / "model.yaml").write_bytes(EMBEDDED_CONFIG.read_bytes())
    return [folder / "model.yaml"]


@_reader("yaml", _write_yaml)
def _read_yaml(path: Path) -> None:
    from qsam2_ao.models.official import build_official

    build_official(str(path))


def _write_packed(folder: Path) -> list[Path]:
    from qsam2_ao import save_qsam2

    for preset in ("w4a8", "w2a8"):
        save_qsam2(_small_quantized(preset), folder / f"{preset}.safetensors")
        # And as older versions wrote them: without checksums, damage gets further.
        with safe_open(folder / f"{preset}.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {key: text for key, text in file.metadata().items() if key != "crc32"}
        save_file(tensors, folder / f"{preset}-unchecked.safetensors", metadata)
    return sorted(folder.iterdir())


@_reader("packed", _write_packed, quick=False)
def _read_packed(path: Path) -> None:
    from qsam2_ao import load_qsam2

    load_qsam2(path)


def _write_exported(folder: Path) -> list[Path]:
    from qsam2_ao.export import export_onnx

    export_onnx(_small_quantized("w4a8"), folder / "onnx")
    return [folder / "onnx"]


@_reader("exported", _write_exported, quick=False)
def _read_exported(path: Path) -> None:
    from qsam2_ao.export import ExportedSAM2

    ExportedSAM2(path).set_image(_pixels())


# --- small files and texts


def _write_bits(folder: Path) -> list[Path]:
    from qsam2_ao.recipe.resolve import resolve_recipe
    from qsam2_ao.sensitivity.assignment import Assignment

    bits = dict.fromkeys(resolve_recipe("w4a8", _small_model()), 4)
    Assignment(bits=bits, first_last_bits=8, bytes=100, budget=200, loss=0.1, metric="sqnr").save(folder / "bits.json")
    return [folder / "bits.json"]


@_reader("bits", _write_bits)
def _read_bits(path: Path) -> None:
    from qsam2_ao.sensitivity.assignment import Assignment

    Assignment.load(path).check_model(_small_model())


def _write_prompts(folder: Path) -> list[Path]:
    (folder / "prompts.txt").write_text("point 3,4 2:5,6,0 9:30,20,1\nbox 1,2,30,20 2:3,4,5,6\n")
    return [folder / "prompts.txt"]


@_reader("prompts", _write_prompts)
def _read_prompts(path: Path) -> None:
    """As they come from the command line: words that a shell made of a text."""
    from qsam2_ao.segmentation import parse_prompts

    lines = [line.split() for line in path.read_bytes().decode("utf-8", "surrogateescape").splitlines() if line.strip()]
    points = [word for words in lines if words[0] == "point" for word in words[1:]]
    boxes = [word for words in lines if words[0] != "point" for word in words[1:]]
    parse_prompts((32, 24), points, boxes)


def _write_prompt_files(folder: Path) -> list[Path]:
    items = [
        {"frame": 0, "object": 1, "points": [[3, 4], [10.5, 6]], "labels": [1, 0]},
        {"frame": 2, "object": 2, "box": [1, 2, 30, 20]},
        {"frame": 3, "object": 2, "remove": True},
    ]
    (folder / "prompts.json").write_text(json.dumps(items))
    return [folder / "prompts.json"]


@_reader("prompt-file", _write_prompt_files)
def _read_prompt_file(path: Path) -> None:
    from qsam2_ao.segmentation.prompts import parse_schedule

    parse_schedule((32, 24), file=path, frames=5)


# --- the command line, around all of them


def _write_for_commands(folder: Path) -> list[Path]:
    written: list[Path] = []
    for name in ("picture", "davis", "checkpoint", "yaml", "packed", "bits"):
        (folder / name).mkdir()
        written += READERS[name].write(folder / name)
    return written


@_reader("commands", _write_for_commands, quick=False)
def _run_a_command(path: Path) -> None:
    """The command that a file of its kind is for; a traceback is what this raises."""
    from typer.testing import CliRunner

    from qsam2_ao.cli.main import app
    from qsam2_ao.errors import QSAM2Error

    output = path.parent / "output"
    if path.name == "DAVIS":
        line = ["evaluate", "embedded", "--data", path, "--videos", 1, "--json"]
    elif path.suffix == ".json":
        line = ["quantize", "embedded", "--bits-file", path, "--calibration", path.parent, "-o", output / "no.pt"]
    elif path.suffix in (".yaml", ".pt", ".pth", ".safetensors") or path.is_dir():
        line = ["inspect", path, "--json"]
    else:
        line = ["segment", "embedded", path, "--point", "3,4", "-o", output]
    result = CliRunner().invoke(app, [str(word) for word in line])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2 and "error: " in result.stderr:
        raise QSAM2Error(result.stderr)
    assert result.exit_code == 0, (result.exit_code, result.output)
