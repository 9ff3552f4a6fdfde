"""The report of the accuracy benchmark as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...training.settings import SHARE_FROM_3_BITS
from .data import BenchmarkData
from .experiment import Budget
from .methods import FLOAT, METHODS, MIXED, RIVALS, STRONG_RIVALS
from .models import MODELS, HeavyTails, WeightShape
from .plan import COLUMNS, MAIN_MODELS, REAL_MODELS, UNTRAINED_COLUMNS
from .results import Results

METRICS = ("J&F", "mIoU_box", "mIoU_box_frames", "mIoU_1click", "mIoU_3click")


@dataclass(frozen=True)
class Goal:
    """What is to be reached.

    Attributes:
        text: In words.
        model: Weight setting.
        setting: Bits.
        metric: Metric.
        against: "rival" for the best rival, "strong rival" for the best of these and of LSQ from a better start or with
            a better loss, "untrained" for VRC+GPTQ without training, or the name of a method.
        margin: At least so many percentage points better (negative: at most so many worse).
    """

    text: str
    model: str
    setting: str
    metric: str
    against: str
    margin: float


OURS = ("QSAM2", "QSAM2, part by part")
"""The full recipe, trained end to end and as the commands train it."""
_RIVALS = {"rival": RIVALS, "strong rival": STRONG_RIVALS}
_SHOWN = tuple(dict.fromkeys((*MAIN_MODELS, *REAL_MODELS)))
GOALS = (
    Goal("9.7 over the best rival", "heavy-tailed", "W2A4", "J&F", "rival", 9.7),
    Goal("7.3 over the best rival", "heavy-tailed", "W2A4", "mIoU_box", "rival", 7.3),
    Goal("5 over the best rival", "heavy-tailed", "W2A8", "J&F", "rival", 5.0),
    Goal("at most 3 under float", "heavy-tailed", "W2A8", "J&F", FLOAT, -3.0),
    Goal("at most 1 under float", "heavy-tailed", "W3A8", "J&F", FLOAT, -1.0),
    Goal("at most 0.5 under float", "heavy-tailed", "W4A8", "J&F", FLOAT, -0.5),
    *(Goal("not worse than the best rival", m, s, "J&F", "rival", 0.0) for m in MAIN_MODELS for s in ("W4A8", "W8A8")),
    *(Goal("not worse than the best rival", "plain", s, "J&F", "rival", 0.0) for s in ("W2A4", "W2A8", "W3A8")),
)
_UNDER_FLOAT = {"W4A8": 0.3, "W3A8": 0.7, "W2A8": 2.0, "W2A4": 4.0}
REAL_GOALS = tuple(
    goal
    for metric in ("J&F", "mIoU_box", "mIoU_box_frames")
    for model in REAL_MODELS
    for goal in (
        *(
            Goal(f"at most {margin:g} under float", model, s, metric, FLOAT, -margin)
            for s, margin in _UNDER_FLOAT.items()
        ),
        *(Goal(f"{m:g} over untrained", model, s, metric, "untrained", m) for s, m in (("W2A8", 1.0), ("W2A4", 3.0))),
        Goal(
            f"{7.3 if 'box' in metric else 9.7} over the best rival",
            model,
            "W2A4",
            metric,
            "strong rival",
            7.3 if "box" in metric else 9.7,
        ),
    )
)


def markdown(
    results: Results,
    budget: Budget,
    environment: Mapping[str, str],
    command: str,
    data: BenchmarkData,
    shapes: Mapping[str, Iterable[WeightShape]],
    plots: Mapping[str, str],
) -> str:
    """The whole report.

    Args:
        results: What was measured.
        budget: What every method got.
        environment: Machine and versions.
        command: What made the results.
        data: What they were measured on.
        shapes: Title of a model -> how heavy the tails of its encoder's weights are.
        plots: Caption -> file name, relative to the report.
    """
    seeds = max(
        (len(results.experiments(c["model"], c["method"], c["setting"])) for c in results.all_experiments), default=0
    )
    parts = [
        "# Accuracy of quantized SAM2\n",
        f"`{command}`; "
        + ", ".join(f"{name} {value}" for name, value in environment.items() if name not in ("processor", "cores"))
        + f".{_processors(results)}\n",
        f"The model `{data.model}`; {data.describe(budget.videos, budget.frames)}. {budget.images} calibration images; "
        f"{budget.steps} steps of training, the same batches for every method, up to {seeds} seeds (mean ± standard "
        "deviation). All layers are quantized as in the presets: per output channel and per tensor, first and last "
        "layers with 8 bits. "
        f"{len(results.all_experiments)} experiments are finished; an empty cell is not in the plan or has not been "
        "run. Differences are in percentage points, with 95 % bootstrap intervals over videos, and over photographs "
        "for these. An experiment is the same to the bit when it is run again on the same machine; on another CPU, "
        "metrics have been seen to move by up to 0.1.\n",
        *_weight_settings(),
        *_targets(results, REAL_GOALS if data.name == "real" else GOALS),
        *_main_tables(results),
        *_ptq(results),
        *_ablations(results),
        *_varied(results),
        *_learning_rates(results, budget),
        *_shapes(shapes),
    ]
    if plots:
        parts.append("## Pictures\n")
        parts += [f"![{caption}]({file})\n\n{caption}\n" for caption, file in plots.items()]
    return "\n".join(parts)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _weight_settings() -> list[str]:
    tails, outliers = MODELS["heavy-tailed"], MODELS["outliers"]
    assert isinstance(tails, HeavyTails)
    assert isinstance(outliers, HeavyTails)
    return [
        "*plain*: the model as trained. *heavy-tailed*: the same network, the same float outputs, with outlier weights "
        f"such as SAM2's encoder has: {tails.share:.0%} of the channels behind each LayerNorm and of the attention's "
        f"values of the encoder divided by {tails.smallest:g} to {tails.largest:g}, the columns that read them "
        f"multiplied by it. *outliers*: these, and {outliers.offset:g} added to one channel of the activations "
        "before each MLP of the trunk, which the next biases take back.\n"
    ]


def _targets(results: Results, goals: Iterable[Goal]) -> list[str]:
    rows = {method: _judged(results, goals, method) for method in OURS}
    rows[OURS[0]] += _ptq_targets(results)
    header = ("model", "setting", "metric", "target", "measured (against)", "met")
    return [
        part for method, found in rows.items() if found for part in (f"## Targets for {method}\n", table(header, found))
    ]


def _judged(results: Results, goals: Iterable[Goal], method: str) -> list[list[str]]:
    rows = []
    for goal in goals:
        against, setting = goal.against, goal.setting
        if against in _RIVALS:
            against = results.best(goal.model, goal.setting, goal.metric, _RIVALS[against]) or ""
        elif against == "untrained":
            against, setting = "VRC+GPTQ", f"PTQ {setting}"
        difference = results.difference(goal.model, method, against, goal.setting, goal.metric, setting)
        if difference is None:
            continue
        met = _yes(difference.value >= goal.margin)
        if goal.margin == 0 and difference.value < 0 <= difference.high:
            met = "not told apart"
        rows.append(
            [
                goal.model,
                goal.setting,
                goal.metric,
                goal.text,
                f"{difference} ({against})",
                met,
            ]
        )
    return rows


def _ptq_targets(results: Results) -> list[list[str]]:
    rows = []
    with_vrc = results.spread("heavy-tailed", "VRC+MSE", "PTQ W3", "mIoU_box")
    without = results.spread("heavy-tailed", "MSE", "PTQ W3", "mIoU_box")
    if with_vrc and without:
        gain = with_vrc.mean / without.mean - 1
        rows.append(
            ["heavy-tailed", "PTQ W3", "mIoU_box", "VRC 66 % over none", f"{gain:+.0%} relative", _yes(gain >= 0.66)]
        )
    for metric in ("J&F", "mIoU_box"):
        difference = results.difference("heavy-tailed", "VRC+GPTQ", FLOAT, "PTQ W2", metric)
        if difference:
            met = _yes(difference.value >= -4)
            rows.append(["heavy-tailed", "PTQ W2", metric, "at most 4 under float", f"{difference} (float)", met])
    for model in MAIN_MODELS:
        for metric in ("J&F", "mIoU_box"):
            lost = results.difference(model, FLOAT, "VRC+GPTQ", "PTQ W3", metric)
            regained = results.difference(model, f"VRC+GPTQ{MIXED}", "VRC+GPTQ", "PTQ W3", metric)
            if lost and regained:
                text = f"{regained} of {lost.value:.1f}"
                met = _yes(regained.value >= lost.value / 2)
                rows.append(
                    [model, "PTQ W3", metric, "mixed bits of the same size win back half of the loss", text, met]
                )
    return rows


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _main_tables(results: Results) -> list[str]:
    names = [
        n for n, m in METHODS.items() if m.group in ("rival", "ours") or n.startswith(("VRC+LSQ", "LSQ,", "QSAM2,"))
    ]
    parts = []
    for model in _SHOWN:
        for metric in METRICS:
            part = _grid(results, model, metric, [FLOAT, *names], COLUMNS)
            if part:
                parts += [f"## {metric}, {model}\n", part]
    return parts


def _grid(results: Results, model: str, metric: str, methods: Iterable[str], settings: Iterable[str]) -> str:
    methods = [m for m in methods if m == FLOAT or any(results.has(model, m, s) for s in settings)]
    settings = [s for s in settings if any(results.has(model, m, s) for m in methods if m != FLOAT)]
    if not settings:
        return ""
    rows = []
    for method in methods:
        cells = [results.spread(model, method, setting, metric) for setting in settings]
        rows.append([method, *("" if cell is None else str(cell) for cell in cells)])
    return table(("method", *settings), rows)


def _ptq(results: Results) -> list[str]:
    names = list(METHODS)
    parts = []
    for model in _SHOWN:
        for metric in ("J&F", "mIoU_box", "mIoU_box_frames"):
            part = _grid(results, model, metric, names, UNTRAINED_COLUMNS)
            if part:
                parts += [f"## Without training: {metric}, {model}\n", part]
    return parts


def _ablations(results: Results) -> list[str]:
    parts = []
    for model in _SHOWN:
        rows = []
        for name, method in METHODS.items():
            if method.group != "ablation" and name not in ("LSC", *OURS, "VRC+LSQ"):
                continue
            found = [results.difference(model, name, "VRC+LSC", "W2A4", metric) for metric in ("J&F", "mIoU_box")]
            if all(found):
                rows.append([name, *map(str, found)])
        if rows:
            parts += [
                f"## One thing changed: {model}, W2A4, against VRC+LSC\n",
                table(("method", "J&F", "mIoU_box"), rows),
            ]
    return parts


def _varied(results: Results) -> list[str]:
    names = [name for name in MODELS if name not in _SHOWN]
    parts = []
    for setting in ("W2A4", "PTQ W2"):
        methods = [m for m in METHODS if any(results.has(model, m, setting) for model in names)]
        rows = []
        for model in names:
            cells = [results.spread(model, method, setting, "J&F") for method in methods]
            rows.append([model, *("" if cell is None else str(cell) for cell in cells)])
        if methods:
            parts += [f"## Other outliers: J&F, {setting}\n", table(("model", *methods), rows)]
    return parts


def _processors(results: Results) -> str:
    """Where the experiments ran, which is seldom one machine."""
    found = Counter(e.get("environment", {}).get("processor", "not noted") for e in results.all_experiments)
    said = ", ".join(f"{processor} ({count})" for processor, count in sorted(found.items()))
    return f" Processors of the experiments, one thread each: {said}." if found else ""


def _learning_rates(results: Results, budget: Budget) -> list[str]:
    if not results.searches:
        return []
    header = [f"{r.lr:g}, {r.vectors:g}x, {r.ranges:g}x" for r in budget.rates]
    measured = {experiment["method"] for experiment in results.all_experiments}
    faster = [
        f"those of {n} {m.range_rate:g} times that" for n, m in METHODS.items() if n in measured and m.range_rate != 1
    ]
    partwise = any(METHODS[name].partwise for name in measured & METHODS.keys())
    slower = [f"{SHARE_FROM_3_BITS:g} times all of it part by part from 3 bits on"] if partwise else []
    said = ", ".join(
        ("of matrices, and of biases and gains and of clipping ranges as multiples of it", *faster, *slower)
    )
    if len(budget.rates) == 1:
        return [f"## Learning rates\n\nOf all methods {header[0]}: {said}. None was searched for.\n"]
    rows = []
    for search in results.searches:
        best = max(search["scores"])
        rows.append(
            [
                search["method"],
                search["model"],
                search["setting"],
                *(f"**{s:.1f}**" if s == best else f"{s:.1f}" for s in search["scores"]),
            ]
        )
    return [
        "## Learning rates\n",
        f"Every method's own, from the same grid: {said}. Mean of J&F and box mIoU on {budget.search_videos} "
        "validation videos and the validation pictures, seed 0; 0 is a training that diverged. Variants have the rates "
        "of what they vary.\n",
        table(("method", "model", "setting", *header), rows),
    ]


def _shapes(shapes: Mapping[str, Iterable[WeightShape]]) -> list[str]:
    if not shapes:
        return []
    by_layer: dict[str, list[str]] = {}
    for column in shapes.values():
        for shape in column:
            by_layer.setdefault(shape.layer, []).append(f"{shape.kurtosis:.1f} / {shape.max_over_std:.1f}")
    return [
        "## The encoder's weights: excess kurtosis / largest magnitude in standard deviations\n",
        table(("layer", *shapes), ([f"`{layer}`", *cells] for layer, cells in by_layer.items())),
    ]
