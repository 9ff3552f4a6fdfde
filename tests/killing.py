"""Kill a quantization at random moments, start it again, and compare the file at the end with that of a run left alone.

``python -m tests.killing --moments 10 --seed 0`` kills one run after the other, as ``kill -9`` does, in start-up,
calibration, training or packing, wherever the time drawn falls; ``--ranks 2`` does so to two processes of torchrun.
Each run saves at every step and every batch of images, as one of hours does every few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from qsam2_ao.data.procedural import generate_sequence, write_sequence

ROOT = Path(__file__).parents[1]
#: Small, with everything in it: calibration in several batches, training in parts, judgements, packing.
OPTIONS = "--preset w4a8 --images 18 --steps 3 --validate-every 2 --batch-size 4 --accumulate 2 --frames 2 --objects 1"
JOB = ["quantize", "embedded", *OPTIONS.split()]
PATIENCE = 1200


def start(output: Path, ranks: int) -> subprocess.Popen[bytes]:
    """The command in processes of its own."""
    python = [sys.executable, "-m"]
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"] if ranks > 1 else []
    command = [*python, *launcher, "tests.killing", "--child", *JOB, "--train-data", str(output.parent / "davis")]
    command += ["-o", str(output)]
    log = open(output.with_suffix(".log"), "ab")  # noqa: SIM115 - the child's
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(output: Path, ranks: int) -> float:
    """Let a run end by itself; the seconds that it took."""
    began = time.monotonic()
    process = start(output, ranks)
    if process.wait(PATIENCE) != 0:
        raise RuntimeError(f"it failed: {output.with_suffix('.log').read_text()[-2000:]}")
    return time.monotonic() - began


def kill_after(output: Path, ranks: int, seconds: float) -> bool:
    """Start a run and kill all of its processes; False where it had ended before."""
    process = start(output, ranks)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        for number in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
        return True


def descendants(number: int) -> list[int]:
    """A process's children, their children and so on: torchrun's are in sessions of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == number:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def try_moments(folder: Path, moments: int, seed: int, ranks: int = 1) -> list[str]:
    """Kill as many runs.

    Returns:
        What had been done at each moment. The files are equal.

    Raises:
        AssertionError: They are not.
    """
    whole, broken = folder / "whole.safetensors", folder / "broken.safetensors"
    for number in range(2):
        write_sequence(generate_sequence("train", number, num_frames=3), folder / "davis")
    seconds = finish(whole, ranks)
    generator, found = random.Random(seed), []
    while len(found) < moments:
        after = generator.uniform(0, seconds)
        killed = kill_after(broken, ranks, after)
        kept = sorted(path.name for path in folder.glob("broken.safetensors.work/*/*.pt"))
        found.append(f"{after:.1f} s: {'killed' if killed else 'had ended'}; kept {', '.join(kept) or 'nothing'}")
        print(found[-1], flush=True)
        if not killed:
            assert broken.read_bytes() == whole.read_bytes(), found
            broken.unlink()
    finish(broken, ranks)
    assert broken.read_bytes() == whole.read_bytes(), found
    assert not list(folder.glob("*.work")), "work left behind"
    return found


def child(arguments: list[str]) -> None:
    """The command, saving as often as it can."""
    import qsam2_ao  # noqa: F401
    from qsam2_ao.calibration.kept import KeptCalibration
    from qsam2_ao.cli.main import main
    from qsam2_ao.training.loop import train
    from tests.small_searches import make_searches_small

    make_searches_small(pytest.MonkeyPatch())
    assert train.__kwdefaults__ is not None
    train.__kwdefaults__["checkpoint_minutes"] = 0.0
    KeptCalibration.__init__.__defaults__ = (0.0,)
    sys.argv = ["qsam2", *arguments]
    main()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
        sys.exit()
    parser = argparse.ArgumentParser(prog="python -m tests.killing", description=__doc__)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        try_moments(Path(name), options.moments, options.seed, options.ranks)
    print("the same bytes each time")
