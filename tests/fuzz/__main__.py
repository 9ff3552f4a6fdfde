"""Reads thousands of damaged files with every reader: a clear error or the right result, nothing else.

python -m tests.fuzz                        # all readers, 10,000 cases each; hours
python -m tests.fuzz picture yaml --cases 500
python -m tests.fuzz picture --show 17      # one case again, with its traceback, and the file kept
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest has it: seeds are written by what tests share

import qsam2_ao  # noqa: F401 - before sam2 and torchvision, which may need its repairs

from .harness import case_file, run
from .readers import READERS
from .seeds import write_seeds


def main() -> int:
    """Run it; the exit code is 1 if there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("readers", nargs="*", metavar="READER", help=", ".join(READERS))
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0, help="stop a reader after so long; 0 does not")
    parser.add_argument("--show", type=int, metavar="CASE", help="run one case alone, and keep its file")
    arguments = parser.parse_args()
    names = arguments.readers or list(READERS)
    if unknown := set(names) - READERS.keys():
        parser.error(f"unknown reader {sorted(unknown)[0]}; the readers are {', '.join(READERS)}")
    faults = 0
    with tempfile.TemporaryDirectory(prefix="qsam2-seeds-") as folder:
        seeds, others = write_seeds(Path(folder), names)
        for name in names:
            if arguments.show is not None:
                kept = Path(tempfile.mkdtemp(prefix=f"qsam2-{name}-{arguments.show}-"))
                path = case_file(READERS[name], seeds[name], others, arguments.show, arguments.seed, kept)
                print(path)
                READERS[name].read(path)
                continue
            faults += _run(name, seeds[name], others, arguments)
    return int(faults > 0)


def _run(name: str, seeds: list[Path], others: list[Path], arguments: argparse.Namespace) -> int:
    """A reader's cases, in pieces, so that something is seen of them; returns the number of faults."""
    start, first, last = time.monotonic(), arguments.first, arguments.first + arguments.cases
    read = refused = faults = 0
    kinds: dict[str, list[int]] = {}
    while first < last and not (arguments.minutes and time.monotonic() - start > 60 * arguments.minutes):
        piece = range(first, min(first + 250, last))
        report = run(READERS[name], seeds, others, piece, arguments.seed)
        read, refused, faults = read + report.read, refused + report.refused, faults + len(report.faults)
        for line, cases in report.kinds().items():
            kinds.setdefault(line, []).extend(cases)
        first = piece.stop
        if sys.stderr.isatty():
            print(f"\r{name}: {first - arguments.first} of {arguments.cases}", end="", file=sys.stderr)
    seconds = time.monotonic() - start
    print(f"{name}: {read} read, {refused} refused, {faults} faults in {seconds:.0f} s", flush=True)
    for line, cases in kinds.items():
        print(f"  {len(cases)} x {line}  (--show {cases[0]})", flush=True)
    return faults


if __name__ == "__main__":
    sys.exit(main())
