"""Models and processes: files that change, pickle, shared memory, spawned and forked processes, containers."""

from __future__ import annotations

import ast
import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import logits, work

from qsam2_ao import convert_qsam2, load_embedded, load_qsam2, save_qsam2
from qsam2_ao.deploy.targets import get_target
from qsam2_ao.errors import CheckpointError, UnsupportedLayerError
from qsam2_ao.models.embedded import build_embedded
from qsam2_ao.native import why_no_kernels, why_unfit_for_kernels

ROOT = Path(__file__).parents[1]
needs_kernels = pytest.mark.skipif(why_no_kernels() is not None, reason="the int8 kernels do not run here")
TARGETS = ["packed", pytest.param("int8", marks=needs_kernels)]


def through_torch(model: Any, folder: Path) -> Any:
    torch.save(model, folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=False)


COPIES: dict[str, Callable[[Any, Path], Any]] = {
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "torch.save": through_torch,
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_loaded_model_does_not_depend_on_its_file(packed_file: Path, tmp_path: Path, target: str) -> None:
    path = Path(shutil.copy(packed_file, tmp_path))
    model = load_qsam2(path, target=target)
    expected = logits(model)
    with open(path, "r+b") as file:
        file.write(b"\x7f" * path.stat().st_size)
    np.testing.assert_array_equal(logits(model), expected)
    os.truncate(path, 0)
    np.testing.assert_array_equal(logits(model), expected)


@pytest.mark.parametrize("target", TARGETS)
def test_copies_of_every_kind_give_the_same_masks(packed_file: Path, tmp_path: Path, target: str) -> None:
    model = load_qsam2(packed_file, target=target)
    expected = logits(model)
    for name, make in COPIES.items():
        np.testing.assert_array_equal(logits(make(model, tmp_path)), expected, err_msg=name)


@pytest.mark.parametrize("target", TARGETS)
def test_a_pickled_graph_calls_the_same_functions(packed_file: Path, target: str) -> None:
    def functions(model: Any) -> list[Any]:
        graphs = [part.graph for part in model.modules() if isinstance(part, torch.fx.GraphModule)]
        return [node.target for graph in graphs for node in graph.nodes if node.op == "call_function"]

    model = load_qsam2(packed_file, target=target)
    assert functions(pickle.loads(pickle.dumps(model))) == functions(model)


@needs_kernels
def test_a_pickled_int8_model_knows_its_kernels(packed_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = pickle.dumps(load_qsam2(packed_file, target="int8"))
    monkeypatch.setattr("qsam2_ao.native.build.digest", lambda: "another")
    with pytest.raises(CheckpointError, match=r"was pickled with other kernels .*packed file"):
        pickle.loads(content)


@pytest.mark.parametrize("target", TARGETS)
def test_shared_memory_keeps_the_masks(packed_file: Path, target: str) -> None:
    model = load_qsam2(packed_file, target=target)
    expected = logits(model)
    model.share_memory()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [name for name, tensor in tensors if not tensor.is_shared()] == []
    np.testing.assert_array_equal(logits(model), expected)


@pytest.fixture(scope="module")
def int4_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("int4") / "w4a16.safetensors"
    save_qsam2(convert_qsam2(build_embedded(), {"memory_attention": "w4a16"}, vrc=None), path)
    return path


def test_int4_is_refused_at_once(int4_file: Path, tmp_path: Path) -> None:
    model = load_qsam2(int4_file, target="int4")
    with pytest.raises(UnsupportedLayerError, match=r"cannot share its memory .* let each process load"):
        model.share_memory()
    for name in ("pickle", "torch.save"):
        with pytest.raises(CheckpointError, match="another process loads the packed file itself"):
            COPIES[name](model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_a_spawned_process_takes_models(packed_file: Path, shared: bool) -> None:
    models = {"float": load_embedded(), "packed": load_qsam2(packed_file)}
    if why_no_kernels() is None:
        models["int8"] = load_qsam2(packed_file, target="int8")
    expected = {target: logits(model) for target, model in models.items()}
    if shared:
        for model in models.values():
            model.share_memory()
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=work, args=(list(models.values()), results))
    process.start()
    try:
        found = results.get(timeout=120)
    finally:
        process.kill()
        process.join()
    for (target, masks), same in zip(expected.items(), found, strict=True):
        np.testing.assert_array_equal(same, masks, err_msg=target)


FORKING = """
import multiprocessing, sys
from processes import logits, work
import numpy as np, torch
from qsam2_ao import load_qsam2

torch.set_num_threads(2)
model = load_qsam2(sys.argv[1])
logits(model)  # so that OpenMP has threads, which a fork does not have
context = multiprocessing.get_context("fork")
results = context.Queue()
process = context.Process(target=work, args=([model], results))
process.start()
found = results.get(timeout=60)[0]
torch.set_num_threads(1)
print(np.array_equal(found, logits(model)))
"""


def run_python(code: str, *arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> str:
    """Run code in a process with nothing in its environment but what is given."""
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_a_forked_process_goes_on_with_one_thread(packed_file: Path) -> None:
    assert "True" in run_python(FORKING, str(packed_file))


LOADING = """
import sys
import warnings
warnings.simplefilter("ignore")
from qsam2_ao import load_qsam2
from qsam2_ao.stage import stage_of
warnings.simplefilter("always", UserWarning)
from processes import logits
for target in ("packed", "auto"):
    model = load_qsam2(sys.argv[1], target=target)
    logits(model)
    print(target, "is", {taken.target for taken in stage_of(model).targets.values()})
"""
UNWRITABLE = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
"""No file can grow from the first import on: to a program, a read-only file system."""

_SETPRIV = shutil.which("setpriv")
_STRANGER = (
    *(str(_SETPRIV), "--reuid=54321", "--regid=54321", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),  # the tests' files are somebody's own
)


def check_both_run(out: str, why: str) -> None:
    """The target "auto" takes what needs no compiler, and says so."""
    others = ("dequantized",) if get_target("onednn").why_not("cpu") else ("onednn", "dequantized")
    assert "packed is {'packed'}" in out
    auto = next(line for line in out.splitlines() if line.startswith("auto is "))
    assert ast.literal_eval(auto.removeprefix("auto is ")) <= set(others), "for this small model, whichever was faster"
    if why_unfit_for_kernels(torch.device("cpu")) is None:  # otherwise nothing is missing
        assert why in out


@pytest.mark.slow
@pytest.mark.parametrize("home", [{"HOME": "/proc/absent"}, {}, {"XDG_CACHE_HOME": "/proc"}])
def test_without_a_home_and_a_compiler(packed_file: Path, home: dict[str, str]) -> None:
    out = run_python(LOADING, str(packed_file), PATH="/nonexistent", **home)
    if not home and os.getuid() == 0:
        return  # the system knows where its home is
    check_both_run(out, "slower: The kernels")


@pytest.mark.slow
@pytest.mark.skipif(_SETPRIV is None or os.getuid() != 0, reason="it takes root to become somebody else")
def test_a_user_without_a_name_and_a_home(packed_file: Path) -> None:
    out = run_python(LOADING, str(packed_file), prefix=_STRANGER, PATH="/nonexistent")
    check_both_run(out, "there is no folder for them")


@pytest.mark.slow
def test_nothing_can_be_written(packed_file: Path) -> None:
    out = run_python(UNWRITABLE + LOADING, str(packed_file), PATH=os.environ["PATH"], XDG_CACHE_HOME="/proc/absent")
    check_both_run(out, "slower: The kernels are compiled once")


@pytest.mark.parametrize("target", ["float", *TARGETS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_model_runs_in_autocast(packed_file: Path, target: str, dtype: torch.dtype) -> None:
    model = load_embedded() if target == "float" else load_qsam2(packed_file, target=target)
    expected = logits(model)
    with torch.autocast("cpu", dtype):
        found = logits(model)
    assert ((found > 0) == (expected > 0)).mean() > 0.95
