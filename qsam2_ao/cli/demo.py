"""``qsam2 demo``: the whole journey on the embedded model: float, VRC, QAT, 4 and 2 bits, reload, evaluate."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import QConfigError
from ..files import atomic_write
from .common import EMBEDDED, PRESET_NAMES, Device, Json, console, load_model, note, print_json
from .workspace import Workspace, fingerprint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..data.procedural import Sequence

FRAMES = 16
PICTURES = 3


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write.")] = Path(
        "outputs/demo"
    ),
    preset: Annotated[list[str], typer.Option(help=f"Among {PRESET_NAMES}. Repeatable.")] = ["w4a8", "w2a8"],  # noqa: B006
    steps: Annotated[int, typer.Option(min=0, help="Training steps for each preset.")] = 80,
    images: Annotated[int, typer.Option(min=1, help="Calibrate on so many images.")] = 50,
    videos: Annotated[int, typer.Option(min=1, help="Evaluate on so many videos of the test split.")] = 16,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Take the small SAM2 that ships with the package from float to packed bits, and compare.

    Writes the packed files, pictures of the masks side by side and results.json. Run again, it goes on where it
    stopped.

    Example: [bold]qsam2 demo --steps 200 -o outputs/demo[/bold]
    """
    from ..data.procedural import generate_sequence
    from ..models.embedded import EMBEDDED_WEIGHTS
    from ..recipe import PRESETS
    from ..reporting.size import file_size
    from ..reporting.tables import ModelRow, comparison_table
    from ..threads import one_thread_if_small
    from .pipeline import Recipe, procedural_images, quantize_file

    if unknown := [name for name in preset if name not in PRESETS]:
        raise QConfigError(f"unknown preset {unknown[0]!r}; the presets are {', '.join(PRESETS)}")
    settings = {
        "steps": steps,
        "images": images,
        "videos": videos,
        "lr": lr,
        "seed": seed,
        "model": fingerprint(EMBEDDED_WEIGHTS),
        "versions": {name: importlib.metadata.version(name) for name in ("qsam2_ao", "torch")},
    }
    work = Workspace(output / "work", settings)
    model = load_model(EMBEDDED, device=device)
    tests = [generate_sequence("test", i, num_frames=FRAMES) for i in range(min(PICTURES, videos))]

    with one_thread_if_small(model):
        note("float: evaluating")
        scores, masks = _evaluate(work, "float", model, videos, tests)
        rows = [ModelRow("float", "16 / 32", file_size(EMBEDDED_WEIGHTS), **scores)]
        columns = {"float": masks}
        for name in preset:
            recipe = Recipe(name, images, steps, lr, seed)
            packed = work.folder / f"{name}.safetensors"
            if not packed.exists():
                calibration = procedural_images(images, model.image_size)
                quantize_file(model, recipe, packed, work, calibration_data=calibration)
            with atomic_write(output / packed.name) as temporary:
                shutil.copyfile(packed, temporary)
            note(f"{name}: loading {output / packed.name} and evaluating")
            loaded = load_model(str(output / packed.name), device=device)
            scores, columns[name] = _evaluate(work, name, loaded, videos, tests)
            bits = f"{PRESETS[name].weight_bits} / {PRESETS[name].activation_bits or 32}"
            rows.append(ModelRow(name, bits, file_size(packed), **scores))
    pictures = [
        str(_picture(sequence, {name: masks[i] for name, masks in columns.items()}, output))
        for i, sequence in enumerate(tests)
    ]
    result = {"rows": [row.to_dict() for row in rows], "pictures": pictures, "settings": settings}
    with atomic_write(output / "results.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2))
    if as_json:
        print_json(result)
        return
    console().print(comparison_table(rows, f"{videos} test videos, {steps} training steps, in percent"))
    typer.echo(f"wrote the packed files, {len(pictures)} pictures and results.json to {output}")


def _evaluate(
    work: Workspace, name: str, model: Any, videos: int, tests: list[Sequence]
) -> tuple[dict[str, float], NDArray[np.uint8]]:
    """Scores in percent, and the ids that the model finds on the pictured videos, ``[video, frame, height, width]``."""
    import numpy as np

    from ..data.procedural import generate_split
    from ..evaluation import track_sequence
    from .evaluate import score

    def track_all(path: Path) -> None:
        np.savez_compressed(path, masks=np.stack([track_sequence(model, sequence) for sequence in tests]))

    scores = work.result(
        f"{name}-scores", lambda: score(model, list(generate_split("test", videos, num_frames=FRAMES)))
    )
    return scores, np.load(work.file(f"{name}-masks.npz", track_all))["masks"]


def _picture(sequence: Sequence, masks: dict[str, NDArray[np.uint8]], output: Path) -> Path:
    """Three frames of a video, one a row; the true masks first, then each model's."""
    from ..reporting.overlay import draw_masks, save_picture, side_by_side

    pictures, titles = [], []
    for frame in (FRAMES // 3, 2 * FRAMES // 3, FRAMES - 1):
        for title, ids in {"truth": sequence.masks, **masks}.items():
            pictures.append(draw_masks(sequence.frames[frame], ids[frame]))
            titles.append(f"{title}, frame {frame}")
    sheet = side_by_side(pictures, titles, columns=1 + len(masks))
    return save_picture(sheet, output / f"masks-{sequence.name}.png")
