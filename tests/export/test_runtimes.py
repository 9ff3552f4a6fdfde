"""What opening a network in its runtime does to the process."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from qsam2_ao.export.runtimes import open_network

_TWO_GO_IN_THE_ORDER_THEY_CAME = """
import signal, sys
from pathlib import Path
import openvino as ov
import openvino.opset13 as ops
from qsam2_ao.export.runtimes import open_network

x = ops.parameter([1, 4], ov.Type.f32)
ov.save_model(ov.Model([ops.relu(x)], [x]), sys.argv[1] + "/part.xml")
networks = [open_network(Path(sys.argv[1]), "part", "openvino") for _ in range(2)]
del networks[0]
del networks[0]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without one
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_threads_have_their_own_answers(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([1, 256], ov.Type.f32)
    weights = np.eye(256, dtype=np.float32) * 2
    ov.save_model(ov.Model([ops.matmul(ops.relu(x), weights, False, False)], [x]), tmp_path / "part.xml")
    network = open_network(tmp_path, "part", "openvino")
    inputs = [torch.full((1, 256), float(number)) for number in range(64)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda value: network(value)[0], inputs))
    for value, answer in zip(inputs, answers, strict=True):
        assert torch.equal(answer, value * 2)


@pytest.mark.slow
def test_control_c_still_interrupts_when_openvinos_networks_are_gone(tmp_path: Path) -> None:
    """In a process of its own, which a signal stack that is gone would end."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", _TWO_GO_IN_THE_ORDER_THEY_CAME, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
