"""The sections about results: comparisons, demos, trainings, evaluations and sensitivities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..comparison import Comparison
from ..comparison.saving import SHEET
from ..reporting.size import human_bytes
from .figures import bars, curves, pareto
from .page import Block, Facts, Section, Table, Text, drawing, picture, read_picture
from .sources import scores_of

_WORST_VIDEOS = 20
_ON_THE_LINE = "No model is both smaller and more accurate than one on the line."
#: Title, the beginnings of the names of what is drawn in one figure of a training, and what that is.
_CURVES = (
    ("loss", ("loss", "held_out"), "Loss and its terms; held_out is that of batches which are not trained on."),
    ("validation", ("jf", "j", "f", "box", "click", "total", "procedural", "miou"), "Scores on validation data."),
    ("ranges", ("ranges/",), "How far the clipping ranges have moved: the change of the logarithm of their width."),
    ("share clipped", ("clipped/",), "Share of the weights and of the inputs that are outside of their range."),
    ("gradient", ("gradient_norm",), "Norm of the gradient, before it is clipped."),
    ("learning rate", ("lr",), "Learning rates."),
)
_SECONDS = ("seconds", "validation_seconds")
_SETTINGS = {
    "steps": "training steps",
    "images": "calibration images",
    "videos": "test videos",
    "lr": "learning rate",
    "seed": "seed",
}
_SCORES = (
    "J is the mean IoU (intersection over union) of the tracked masks with the true ones, F how well their outlines "
    "agree, and J&F the mean of the two, over all objects. mIoU is the mean IoU on single frames, where each object is "
    "asked for by itself: by its box, where nothing else is said. All are in percent, and more is better."
)


def comparison_section(folder: Path, comparison: Comparison) -> Section:
    """Models beside each other, and where they differ most."""
    first = comparison.models[0]
    blocks: list[Block] = [
        Text(
            f"On {comparison.described}; all are compared with {first.label}, on {comparison.device}. IoU "
            f"(intersection over union) is 100 % where a model chose the same pixels as {first.label}; how right "
            "either is, it does not say. The own score is a model's estimate of its masks' IoU with the true ones, "
            "from 0 to 1."
        ),
        Table(
            ["", *(model.label for model in comparison.models)],
            [[heading, *cells] for heading, cells in comparison.columns().items()],
        ),
    ]
    if len(comparison.models) > 1:
        points = {
            model.label: (float(model.file_bytes), model.iou, model.picture_speed or model.frame_speed)
            for model in comparison.models
        }
        figure = pareto(points, f"IoU with {first.label}, %")
        blocks.append(drawing(figure, f"Size, speed and accuracy. {_ON_THE_LINE}"))
    sheet = folder / SHEET
    if sheet.is_file():
        blocks.append(picture(read_picture(sheet), "Where the models differ most, the worst first."))
    others = [model.label for model in comparison.models[1:]]
    by_subject = sorted(comparison.subjects, key=lambda subject: min(subject.iou.values(), default=100.0))
    blocks.append(
        Table(
            ["picture or clip", "size", "frames", "objects", *(f"IoU, {label}" for label in others)],
            [
                [
                    subject.name,
                    "x".join(map(str, subject.size)),
                    str(subject.frames),
                    str(subject.objects),
                    *(f"{subject.iou[label]:.1f}" for label in others),
                ]
                for subject in by_subject
            ],
            f"All {len(by_subject)} pictures and clips",
            folded=True,
        )
    )
    return Section(f"Comparison: {', '.join(model.label for model in comparison.models)}", blocks)


def demo_section(folder: Path, results: Mapping[str, Any]) -> Section:
    """The figures of a demo, size against accuracy, and masks side by side."""
    first, rows, points = results["rows"][0], [], {}
    for row in results["rows"]:
        scores = scores_of(row)
        size = row.get("file_bytes")
        rows.append(
            [
                str(row["name"]),
                str(row.get("bits") or "-"),
                *(_beside(row, first, name) for name in ("jf", "j", "f", "miou")),
                human_bytes(size) if size else "-",
                _times_smaller(row, first),
            ]
        )
        if size and "jf" in scores:
            points[str(row["name"])] = (float(size), scores["jf"], None)
    settings = results.get("settings", {})
    blocks: list[Block] = [
        Table(["model", "weight / input bits", "J&F", "J", "F", "mIoU", "file", "smaller"], rows),
        Text(f"{_SCORES} In brackets: what is gained or lost beside {first['name']}."),
        Facts(
            {said: str(settings[key]) for key, said in _SETTINGS.items() if isinstance(settings.get(key), (int, float))}
        ),
    ]
    if len(points) > 1:
        blocks.append(drawing(pareto(points, "J&F, %"), f"Size and accuracy. {_ON_THE_LINE}"))
    for name in results["pictures"]:
        path = folder / Path(name).name
        if path.is_file():
            blocks.append(picture(read_picture(path), _caption(path.stem)))
    return Section("Before and after", blocks)


def _caption(name: str) -> str:
    if name == "photographs":
        return "Photographs: the boxes, and the masks of embedded-256 at the same bits, calibrated and not trained."
    return f"{name.removeprefix('masks-')}: the true masks, and each model's."


def _beside(row: Mapping[str, Any], first: Mapping[str, Any], name: str) -> str:
    """A score, and its difference to the first model's."""
    scores, before = scores_of(row), scores_of(first)
    if name not in scores:
        return "-"
    difference = f" ({scores[name] - before[name]:+.1f})" if row is not first and name in before else ""
    return f"{scores[name]:.1f}{difference}"


def _times_smaller(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    size, before = row.get("file_bytes"), first.get("file_bytes")
    return f"{before / size:.1f} times" if row is not first and size and before else "-"


def training_section(path: Path, rows: Sequence[Mapping[str, float]]) -> Section:
    """The curves of a training's log."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", *_SECONDS)))
    blocks: list[Block] = [Facts(_last(rows))]
    left = set(names)
    for title, beginnings, caption in _CURVES:
        chosen = [name for name in names if any(_belongs(name, beginning) for beginning in beginnings) and name in left]
        if chosen:
            left -= set(chosen)
            blocks.append(drawing(curves(rows, chosen, title), caption, small=True))
    if changing := [name for name in names if name in left and len({row[name] for row in rows if name in row}) > 1]:
        blocks.append(drawing(curves(rows, changing, "value"), "What else the log has.", small=True))
    return Section(f"Training: {path.parent.name}/{path.name}", blocks)


def _belongs(name: str, beginning: str) -> bool:
    return name == beginning or name.startswith(
        beginning if beginning.endswith("/") else (f"{beginning}/", f"{beginning}_")
    )


def _last(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    facts = {"steps": f"{rows[-1]['step']:.0f}", "lines in the log": str(len(rows))}
    losses = [row["loss"] for row in rows if "loss" in row]
    if losses:
        facts["loss, first and last"] = f"{losses[0]:.3g}, {losses[-1]:.3g}"
    if finite := [loss for loss in losses if math.isfinite(loss)]:
        facts["least loss"] = f"{min(finite):.3g}"
    if diverged := len(losses) - len(finite):
        facts["lines with a loss that is not finite"] = str(diverged)
    return facts


def run_section(folder: Path, settings: Mapping[str, Any]) -> Section:
    """A run that keeps its stages: an unfinished one."""
    plain = {key: str(value) for key, value in settings.items() if isinstance(value, (str, int, float))}
    stages = [[path.name, human_bytes(path.stat().st_size)] for path in sorted(folder.iterdir()) if path.is_file()]
    return Section(
        f"Run: {folder.parent.name}",
        [
            Text("This run is not finished, or its work was kept. The same command goes on from the stages below."),
            Facts(plain),
            Table(["stage", "size"], stages),
        ],
    )


def evaluation_section(path: Path, content: Mapping[str, Any]) -> Section:
    """The scores of an evaluation, and those of its videos, the worst first."""
    facts = {key: str(value) for key, value in content.items() if isinstance(value, (str, int))}
    settings, scores, by_prompt = content.get("settings"), scores_of(content), content.get("miou_by_prompt")
    if isinstance(settings, Mapping) and isinstance(settings.get("prompt"), str) and "jf" in scores:
        facts["prompt"] = settings["prompt"]
    facts |= {said: f"{scores[key]:.1f} %" for key, said in (("jf", "J&F"), ("j", "J"), ("f", "F")) if key in scores}
    if isinstance(by_prompt, Mapping) and by_prompt:
        facts |= {f"mIoU, {prompt}": f"{value:.1f} %" for prompt, value in by_prompt.items()}
    elif "miou" in scores:
        facts["mIoU"] = f"{scores['miou']:.1f} %"
    blocks: list[Block] = [Facts(facts), Text(_SCORES)]
    if left := content.get("not_scored"):
        blocks.append(Text(f"Not scored: {', '.join(map(str, left))}."))
    videos = _videos(content)
    if videos:
        worst = sorted(videos, key=lambda name: videos[name].get("jf", 0.0))
        shown = worst[:_WORST_VIDEOS]
        chart = bars(shown, {"J&F": [videos[name].get("jf", 0.0) for name in shown]}, "J&F, %", ("#3949ab",))
        which = f"The {len(shown)} worst of {len(worst)} videos." if len(worst) > len(shown) else "Every video."
        rows = [
            [name, *(f"{videos[name][k]:.1f}" if k in videos[name] else "-" for k in ("jf", "j", "f"))]
            for name in worst
        ]
        blocks += [drawing(chart, which), Table(["video", "J&F", "J", "F"], rows, "All videos", folded=True)]
    return Section(f"Evaluation: {content.get('model') or path.stem}", blocks)


def _videos(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The scores of every video, wherever in the result they are."""
    for key, value in content.items():
        if not isinstance(value, Mapping):
            continue
        if key == "sequences":
            return {str(name): scores_of(scores) for name, scores in value.items() if isinstance(scores, Mapping)}
        if found := _videos(value):
            return found
    return {}


def sensitivity_section(path: Path, content: Mapping[str, Any]) -> Section:
    """What each layer costs at each bit-width, the most sensitive first."""
    losses: dict[str, dict[int, float]] = {}
    for record in content["records"]:
        losses.setdefault(str(record["layer"]), {})[int(record["bits"])] = float(record["loss"])
    widths = sorted({bits for found in losses.values() for bits in found})
    order = sorted(losses, key=lambda name: -losses[name].get(widths[0], 0.0))
    shown = order[:15]
    chart = bars(
        shown, {f"{widths[0]} bits": [losses[name].get(widths[0], 0.0) for name in shown]}, _loss(content), ("#3949ab",)
    )
    rows = [[name, *(f"{losses[name][w]:.3g}" if w in losses[name] else "-" for w in widths)] for name in order]
    return Section(
        f"Sensitivity: {path.resolve().parent.name}",
        [
            Text("Each layer quantized alone, all others in float."),
            drawing(chart, f"The layers that lose most at {widths[0]} bits."),
            Table(["layer", *(f"{w} bits" for w in widths)], rows, f"All {len(rows)} layers", folded=True),
        ],
    )


def _loss(content: Mapping[str, Any]) -> str:
    return "loss of J&F and box mIoU, percent" if content["metric"] == "jf" else "relative squared error of the outputs"
