"""What quantizing each layer of a named model costs, and the bits of each layer that fit a size, as files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import QSAM2Error
from ..files import atomic_write, check_output_folder
from ..graph import REGIONS
from ..optional import needed
from ..reporting.figures import save_figure
from ..reporting.notes import note
from ..sensitivity import (
    Assignment,
    Sensitivity,
    assign_bits,
    budget_bytes,
    measure_sensitivity,
    quantizable_layers,
)
from ..sensitivity.assign import check_budget
from ..sensitivity.plot import region_figure
from ..stage import stage_of
from ..workspace import Workspace, fingerprint, versions
from . import EMBEDDED
from .data import calibration_source, data_for, videos_with_masks
from .models import load_model
from .shares import Share

FRAMES = 8


def choose_bits(
    model: str,
    output: str | os.PathLike[str],
    *,
    budget: str = "w3",
    bits: Sequence[int] = (2, 3, 4, 8),
    metric: str = "sqnr",
    calibration: str | None = None,
    images: int = 8,
    data: str | None = None,
    videos: int = 8,
    vrc: bool = True,
    rounding: str = "gptq",
    first_and_last: bool = False,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    share: Share | None = None,
) -> tuple[Sensitivity, Assignment] | None:
    """Quantize one layer at a time, measure what it costs, and choose bits for each layer within a size.

    Writes ``sensitivity.json``, ``bits.json`` and one plot per region. Measured layers are kept in ``OUTPUT/work``:
    run again after an interruption, or with another budget, it measures no layer twice.

    Args:
        model: "embedded", or an official name or config with its checkpoint.
        output: The folder to write to.
        budget: Size: "w3" for that of uniform 3 bits, average bits up to 8, or bytes.
        bits: Bit-widths to measure and to choose from, from few to many.
        metric: "sqnr" compares outputs; "jf" tracks videos, which is slow.
        calibration: A folder of images, or "embedded" for procedural ones, which embedded models have by default.
        images: Use at most so many.
        data: For "jf": a DAVIS-style folder, or "embedded" for videos of the validation split, so that the test split
            stays unseen.
        videos: For "jf": the first so many videos.
        vrc: Calibrate the image encoder's weights first.
        rounding: "nearest" or "gptq".
        first_and_last: Choose the first and last layers' bits too, instead of 8.
        seed: Seed of everything random.
        checkpoint: The ``.pt`` file of an official config.
        device: Where to measure.
        share: The layers that this process measures.

    Returns:
        What each layer costs at each bit-width, and the choice; None where another process, or a later run, chooses.

    Raises:
        QConfigError: A metric, rounding or bit-width that does not exist, or a budget that no choice fits.
        QSAM2Error: No data are named, the model is quantized already, or a file cannot be written.
        MissingPackageError: scipy or matplotlib is not installed.

    Example:
        >>> found = choose_bits("embedded", "outputs/sensitivity", budget="3.5")  # doctest: +SKIP
    """
    output, share = Path(output), Share() if share is None else share
    calibration = data_for(model, calibration, "calibration")
    data = data_for(model, data, "data") if metric == "jf" else EMBEDDED
    check_output_folder(output)
    for package in ("scipy", "matplotlib", *(("vos_benchmark",) if metric == "jf" else ())):
        needed(package)  # used at the end
    loaded = load_model(model, checkpoint, share.device(device))
    if stage_of(loaded).layers:
        raise QSAM2Error(f"{model} is quantized already; measure its float model instead")
    layers = quantizable_layers(loaded)
    size = budget_bytes(budget, layers)
    check_budget(layers, size, bits[0], first_and_last=first_and_last)
    work = Workspace(
        output / "work",
        {
            "model": fingerprint(model),
            "checkpoint": fingerprint(checkpoint),
            "calibration": fingerprint(calibration, [output]),
            "images": images,
            "bits": list(bits),
            "metric": metric,
            "data": [fingerprint(data, [output]), videos] if metric == "jf" else None,
            "vrc": vrc,
            "rounding": rounding,
            "seed": seed,
            "versions": versions("qsam2_ao", "torch"),
        },
    )

    def left(names: Iterable[str]) -> list[str]:
        return [name for name in names if not (work.folder / f"{name}.json").exists()]

    images_given = calibration_source(calibration, images, loaded.image_size)
    sequences = videos_with_masks(data, "val", videos, FRAMES) if metric == "jf" else ()

    def measure(names: list[str]) -> Sensitivity:
        return measure_sensitivity(
            loaded,
            images_given,
            bits=bits,
            layers=names,
            metric=metric,
            sequences=sequences,
            vrc="auto" if vrc else None,
            rounding=rounding,
            max_images=images,
            seed=seed,
            remember=work.result,
            remembered=set(names) - set(left(names)),
        )

    if share.count > 1:
        if mine := left(share.of(list(layers))):
            measure(mine)
        if not share.all_done(lambda: left(layers), "layer"):
            return None
    measured = measure(list(layers))
    assignment = assign_bits(measured, size, first_and_last=first_and_last)
    with atomic_write(output / "sensitivity.json") as temporary:
        temporary.write_text(json.dumps({"model": model, **measured.to_dict()}, indent=1, allow_nan=False))
    assignment.save(output / "bits.json")
    note("drawing")
    for region in REGIONS:
        save_figure(region_figure(measured, region, assignment), output / f"{region}.png")
    return measured, assignment
