"""Runs readers on damaged files in child processes, and tells a clear error from a traceback, a crash and a hang."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from .mutate import damage
from .readers import Reader

#: A case may take so long on the processor, ten times as long by the clock, and so much more memory than the process
#: had before.
SECONDS, BYTES = 20, 3 << 30
#: Of a picture: whole ones are small, and decoding what a damaged header claims would take most of the time.
PIXELS = 1 << 24


@dataclass
class Report:
    """What became of a reader's cases.

    Attributes:
        read: Cases that were read to the end: the damage left a file that can be.
        refused: Cases that ended in a QSAM2Error.
        faults: Number of the case -> what happened instead.
    """

    read: int = 0
    refused: int = 0
    faults: dict[int, str] = field(default_factory=dict)

    def kinds(self) -> dict[str, list[int]]:
        """The faults by their last line, most frequent first."""
        lines = Counter(text.strip().splitlines()[-1][:160] for text in self.faults.values())
        return {
            line: [case for case, text in self.faults.items() if text.strip().splitlines()[-1][:160] == line]
            for line, _ in lines.most_common()
        }


def run(reader: Reader, seeds: list[Path], others: list[Path], cases: range, seed: int = 0) -> Report:
    """Run a reader on damaged files.

    Args:
        reader: What reads them.
        seeds: Whole files or folders of its kind.
        others: Files of other kinds.
        cases: Numbers of the cases; a case is the same whatever the others are.
        seed: Of all of them.

    Returns:
        What became of them.
    """
    report, left = Report(), list(cases)
    while left:
        done = 0
        for number, outcome, text in _in_a_child(reader, seeds, others, left, seed):
            done += 1
            if outcome == "read":
                report.read += 1
            elif outcome == "refused":
                report.refused += 1
            else:
                report.faults[number] = text
        left = left[done:]
    return report


def case_file(reader: Reader, seeds: list[Path], others: list[Path], number: int, seed: int, folder: Path) -> Path:
    """Write the file of a case.

    Returns:
        Its path.
    """
    rng = Random(f"{reader.name} {seed} {number}")
    source = rng.choice(seeds)
    target = folder / source.name
    damage(source, target, others, rng)
    return target


def _in_a_child(
    reader: Reader, seeds: list[Path], others: list[Path], numbers: list[int], seed: int
) -> Iterator[tuple[int, str, str]]:
    """Outcomes of cases in a process of their own, until that ends, of itself or otherwise."""
    get, put = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            os.close(get)
            _cases(reader, seeds, others, numbers, seed, put)
        finally:
            os._exit(0)
    os.close(put)
    remaining = iter(numbers)
    with os.fdopen(get) as lines:
        for line in lines:
            if line.endswith("\n"):
                outcome, text = json.loads(line)
                yield next(remaining), outcome, text
    _, status = os.waitpid(child, 0)
    if (culprit := next(remaining, None)) is not None:
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {status}"
        yield (
            culprit,
            "crash",
            f"more than {SECONDS} s" if name in ("SIGPROF", "SIGALRM") else f"the process ended by {name}",
        )


def _cases(reader: Reader, seeds: list[Path], others: list[Path], numbers: list[int], seed: int, put: int) -> None:
    from qsam2_ao.data.decoding import pixel_limit
    from qsam2_ao.errors import QSAM2Error

    faulthandler.disable()  # pytest's would write of every crash
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for kind in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(kind, signal.SIG_DFL)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(tempfile.mkdtemp(prefix="qsam2-fuzz-"))
    try:
        for number in numbers:
            place = folder / "case"
            place.mkdir()
            path = case_file(reader, seeds, others, number, seed, place)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.alarm(10 * SECONDS)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                with pixel_limit(PIXELS):
                    reader.read(path)
                outcome, text = "read", ""
            except QSAM2Error as error:
                outcome, text = "refused", str(error)
                if not text.strip():
                    outcome, text = "fault", "an error without a message"
            except BaseException:
                outcome, text = "fault", traceback.format_exc()
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
            if grown > BYTES // 2:
                outcome, text = "fault", f"took {grown >> 20} MiB"
            os.write(put, (json.dumps([outcome, text[-3000:]]) + "\n").encode())
            shutil.rmtree(place, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
