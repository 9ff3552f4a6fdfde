"""The inference benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...models.official import OFFICIAL
from ...native.build import kind
from .avx2 import ENVIRONMENTS, kernels_for
from .busy import EMBEDDED
from .busy_report import busy_section, busy_targets
from .footprint import CHECKPOINT
from .methods import REFERENCE, SCORES
from .parts import DECODER, ENCODER, FRAME, FRAMES, PARTS, VIDEO

Record = Mapping[str, Any]
_MAIN = "qsam2 W4A8"
_ALLOWANCE = 32 << 20


def in_order(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By model, size (the largest first), threads and part, whenever each was measured."""

    def place(record: Record) -> tuple[int, ...]:
        part = list(PARTS).index(record["part"]) if "part" in record else 0
        return [EMBEDDED, *OFFICIAL].index(record["model"]), -record["size"], record.get("threads", 0), part

    return sorted(records, key=place)


def find(records: Sequence[Record], **wanted: object) -> Record | None:
    """The first record with these values."""
    return next((r for r in records if all(r[key] == value for key, value in wanted.items())), None)


def _ratio(records: Sequence[Record], over: str, method: str, workload: Mapping[str, Any], part: str) -> float | None:
    slow, fast = (find(records, part=part, method=name, **workload) for name in (over, method))
    return slow["ms"] / fast["ms"] if slow and fast else None


def workloads_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """The workloads measured, in order."""
    keys = dict.fromkeys((r["model"], r["size"], r["threads"]) for r in records)
    return [{"model": model, "size": size, "threads": threads} for model, size, threads in keys]


def targets(records: Sequence[Record], files: Sequence[Record]) -> list[tuple[str, str, float, float, bool]]:
    """Where, what, the measured ratio, the limit, and whether the limit is the least (True) or the most allowed."""
    rows: list[tuple[str, str, float, float, bool]] = []

    def add(where: str, what: str, value: float | None, limit: float, least: bool = True) -> None:
        if value is not None:
            rows.append((where, what, value, limit, least))

    for workload in workloads_of(records):
        where = f"{workload['model']}, {workload['size']} px, threads: {workload['threads']}"
        for part, limit in ((ENCODER, 2.8), (FRAME, 5.0), (VIDEO, 1.7), (DECODER, 1.0)):
            for method in (_MAIN, SCORES) if part == FRAME else (_MAIN,):
                ours = find(records, part=part, method=method, **workload)
                what = f"{part}: {method.removeprefix('qsam2 ')} against {REFERENCE}"
                add(where, what, ours["vs_float"] if ours else None, limit)
        add(
            where,
            f"{ENCODER}: W4A8 against OpenVINO INT8",
            _ratio(records, "OpenVINO INT8", _MAIN, workload, ENCODER),
            1.25,
        )
        for bits in (2, 3):
            value = _ratio(records, "qsam2 W8A8", f"qsam2 W{bits}A8", workload, ENCODER)
            add(where, f"{ENCODER}: W{bits}A8 against W8A8", value, 0.95)
    for model in dict.fromkeys(r["model"] for r in files):
        reference = find(files, model=model, file=CHECKPOINT)
        for preset, limit in (("w2a8", 7.0), ("w4a8", 3.7)):
            packed = find(files, model=model, file=preset)
            if reference and packed:
                add(model, f"file: bf16 checkpoint / {preset}", reference["file_bytes"] / packed["file_bytes"], limit)
        packed = find(files, model=model, file="w4a8")
        if packed:
            what = "w4a8, {} / reading the file and building the module"
            for key, name, limit in (
                ("load", "loading", 1.5),
                ("lowered", "loading for int8", 1.3),
                ("mask", "file to first mask", 1.5),
            ):
                start = packed[f"{key}_seconds"] / packed["build_seconds"]
                add(model, what.format(name), start, limit, False)
            for key, name in (("load", "loading"), ("lowered", "loading for int8")):
                peak = (packed[f"{key}_bytes"] - _ALLOWANCE) / packed["file_bytes"]
                add(model, f"w4a8, peak memory of {name} less 32 MiB / file", peak, 1.5, False)
    return rows


def markdown(
    records: Sequence[Record],
    files: Sequence[Record],
    compiled: Sequence[Record],
    work: Sequence[Record],
    ceilings: Mapping[str, Mapping[str, float]],
    memory: Sequence[Record],
    busy: Sequence[Record],
    without_avx512: Mapping[str, Sequence[Record]],
    environment: Mapping[str, str],
    command: str,
    plots: Mapping[str, str],
) -> str:
    """The report.

    Args:
        records: Times, as ``timing.measure`` gives them.
        files: As ``footprint.footprints`` gives them.
        compiled: As ``compile_time.compile_times`` gives them.
        work: As ``roofline.work`` gives it.
        ceilings: Threads -> what ``roofline.ceilings`` gives.
        memory: As ``video_memory`` gives it.
        busy: As ``busy.busy_machine`` gives it.
        without_avx512: What the processor is kept to -> as ``avx2.avx2_times`` gives it.
        environment: Machine and versions.
        command: What was run.
        plots: Caption -> file name.
    """
    lines = ["# Speed, size and memory of deployed models", "", f"`{command}`", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items()]
    lines += [
        "",
        "Weights are random: speed does not depend on them. Batch 1 where nothing else is said. Methods take turns,",
        "round after round; a time is the median, ± half the distance between the quartiles; a ratio is the median",
        "over rounds of the time of the reference over that of the method in the same round.",
    ]
    if records:
        lines += [
            f"The reference is {REFERENCE}: torch.compile of the parts that SAM2's own `SAM2VideoPredictorVOS`",
            "compiles, under bfloat16 autocast.",
        ]
    rows = (*targets(records, files), *busy_targets(busy))
    if rows:
        lines += ["", "## Targets", "", "| where | what | measured | target | met |", "|---|---|---|---|---|"]
    for where, what, value, limit, least in rows:
        met = value >= limit if least else value <= limit
        sign = "at least" if least else "at most"
        lines.append(f"| {where} | {what} | {value:.2f} | {sign} {limit} | {'yes' if met else 'no'} |")
    for workload in workloads_of(records):
        lines += ["", "## {model}, {size} px, threads: {threads}".format(**workload), ""]
        lines += _table(records, workload)
    if any(without_avx512.values()):
        lines += ["", "## Processors without AVX512", "", _WITHOUT_AVX512]
    for instructions, timed in without_avx512.items():
        if timed:
            kept = _KEPT.format(instructions, " ".join(f"{k}={v}" for k, v in ENVIRONMENTS[instructions].items()))
            lines += ["", _IS.format(instructions) if kind() == kernels_for(instructions) else kept]
        for workload in workloads_of(timed):
            lines += ["", "### {model}, {size} px, threads: {threads}, ".format(**workload) + instructions, ""]
            lines += _table(timed, workload)
    if files:
        lines += ["", "## Files", "", _FILES, ""]
        lines += ["| model | file | MiB | smaller | read + build, s | load, s | load for int8, s | to first mask, s |"]
        lines[-1] += " load, MiB | load for int8, MiB | until the mask, MiB |"
        lines += ["|---" * 11 + "|"]
    for r in files:
        reference = find(files, model=r["model"], file=CHECKPOINT)
        smaller = f"{reference['file_bytes'] / r['file_bytes']:.2f}x" if reference else "-"
        seconds = " | ".join(f"{r[f'{key}_seconds']:.2f}" for key in ("build", "load", "lowered", "mask"))
        mib = " | ".join(f"{r[f'{key}_bytes'] / 2**20:.0f}" for key in ("load", "lowered", "mask"))
        size = r["file_bytes"] / 2**20
        lines.append(f"| {r['model']} | {r['file']} | {size:.1f} | {smaller} | {seconds} | {mib} |")
    if compiled:
        lines += ["", "## Compiling", "", _COMPILING, ""]
        lines += ["| model | px | method | cold, s | warm, s |", "|---|---|---|---|---|"]
        for r in compiled:
            row = (r["model"], r["size"], r["method"], f"{r['cold_seconds']:.1f}", f"{r['warm_seconds']:.1f}")
            lines.append("| {} | {} | {} | {} | {} |".format(*row))
    if ceilings:
        lines += ["", "## Against the machine's ceilings", "", _ROOFLINE, ""]
        for threads, found in ceilings.items():
            lines.append(f"- threads: {threads}: " + ", ".join(f"{name} {value:g}" for name, value in found.items()))
        lines += ["", "| model | px | threads | part | GOP in layers | in attention | MB | ms | of the ceiling |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        lines += _roofline(records, work, ceilings)
    if memory:
        first, last = memory[0], memory[-1]
        lines += ["", "## Memory over a long video", ""]
        lines.append(
            f"{first['model']}, {first['size']} px, W4A8, SAM2's own predictor and settings; megabytes allocated on "
            f"top of those after {first['frames']} frames. SAM2's predictor keeps the masks, memories and pointers of "
            f"every frame ({last['kept_mb']:.1f} MB after {last['frames']}); all else is {last['rest_mb']:.1f} MB."
        )
        lines += ["", "| frames | kept by SAM2's predictor, MB | the rest, MB |", "|---|---|---|"]
        lines += [f"| {r['frames']} | {r['kept_mb']:.1f} | {r['rest_mb']:.1f} |" for r in memory]
    if busy:
        lines += busy_section(busy)
    for caption, name in plots.items():
        lines += ["", f"## {caption}", "", f"![{caption}]({name})"]
    return "\n".join(lines) + "\n"


_FILES = (
    "A packed file holds everything: packed weights, scales, biases, and what stays float. The bf16 checkpoint is the\n"
    'official file\'s tensors in bfloat16. Loading is for `target="packed"`; for int8, the weights are rearranged.\n'
    "Memory is the peak until then, on top of the interpreter with its imports, and a mapped file's pages count."
)
_KEPT = "The same processor, kept to {} (`{}`): what one without AVX512 computes, though not at its speed."
_IS = "This processor has {} and nothing newer."
_WITHOUT_AVX512 = (
    "CPU time of one thread. Ours runs on what the target `auto` takes there where no other is named. The reference\n"
    "is eager float32."
)
_COMPILING = (
    "From the model in memory to its first mask, in a process that finds torch.compile's cache empty, and in the next\n"
    "one. What runs with the int8 kernels is not compiled."
)
_ROOFLINE = (
    "GOP/s of large matrix products and GB/s of a copy, measured on this machine. The last column is the least time\n"
    "the operations could take (layers at the int8 ceiling, attention at the bfloat16 one) over the time of W4A8.\n"
    "MB is what matrix products and attention must read and write once."
)


def _table(records: Sequence[Record], workload: Mapping[str, Any]) -> list[str]:
    parts = [part for part in PARTS if find(records, part=part, **workload)]
    methods = dict.fromkeys(r["method"] for r in records if all(r[k] == v for k, v in workload.items()))
    heads = [f"{part}, ms a frame" if part == VIDEO else f"{part}, ms" for part in parts]
    lines = ["| method | " + " | ".join(heads) + " |", "|---" * (len(parts) + 1) + "|"]
    for method in methods:
        cells = []
        for part in parts:
            r = find(records, part=part, method=method, **workload)
            count = FRAMES if part == VIDEO else 1
            ratio = f" ({r['vs_float']:.2f}x)" if r and r["vs_float"] is not None else ""
            cells.append(f"{r['ms'] / count:.1f} ± {r['spread'] / count:.1f}{ratio}" if r else "-")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _roofline(
    records: Sequence[Record], work: Sequence[Record], ceilings: Mapping[str, Mapping[str, float]]
) -> list[str]:
    lines = []
    for w in work:
        for threads, found in ceilings.items():
            workload = {"model": w["model"], "size": w["size"], "threads": int(threads), "part": w["part"]}
            ours = find(records, method=_MAIN, **workload)
            if ours is None or "int8" not in found:
                continue
            least = w["layer_gflop"] / found["int8"] + w["attention_gflop"] / found["bf16"]
            lines.append(
                f"| {w['model']} | {w['size']} | {threads} | {w['part']} | {w['layer_gflop']} | "
                f"{w['attention_gflop']} | {w['tensor_mb']} | {ours['ms']:.1f} | {1e5 * least / ours['ms']:.0f} % |"
            )
    return lines
