"""Wheels that bring the kernels, and what is installed from them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from qsam2_ao.native import compiler, load_kernels, why_unfit_for_kernels

pytestmark = pytest.mark.skipif(
    compiler.why_no_platform() is not None or not compiler.compilers(), reason="needs a compiler for kernels"
)
ROOT = Path(__file__).parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a wheel is made of, with nothing in the package but kernels of one line."""
    root = tmp_path / "tree"
    (root / "qsam2_ao/native/csrc").mkdir(parents=True)
    for name in ("pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "build_backend.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    for name in ("__init__.py", "native/__init__.py", "native/compiler.py"):
        shutil.copy(ROOT / "qsam2_ao" / name, root / "qsam2_ao" / name)
    (root / "qsam2_ao/native/csrc/one.cpp").write_text('extern "C" int one() { return 1; }\n')
    return root


def built(tree: Path, hook: str = "build_wheel", **environment: str) -> Path:
    """The file that a hook of the build backend makes."""
    out = tree.parent / "out"
    call = f"import sys, build_backend; print(build_backend.{hook}(sys.argv[1]))"
    return out / called(tree, call, str(out), **environment)[-1]


def called(tree: Path, code: str, *arguments: str, **environment: str) -> list[str]:
    """The words that Python code prints in the tree."""
    command, settings = [sys.executable, "-c", code, *arguments], {"QSAM2_BUILD_KERNELS": "", **environment}
    run = subprocess.run(command, cwd=tree, env={**os.environ, **settings}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return run.stdout.split()


def libraries(wheel: Path) -> list[str]:
    """Names of the kernels' libraries in a wheel."""
    return [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_a_wheel_has_a_library_for_each_kind_of_cpu(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = built(tree)
    assert wheel.name.endswith(f"-py3-none-linux_{compiler.platform.machine()}.whl")
    monkeypatch.setattr(compiler, "SOURCES", tree / "qsam2_ao/native/csrc")
    kinds = compiler.KINDS[compiler.platform.machine()]
    expected = {f"qsam2_ao/native/{compiler.packaged_library(compiler.flags(kind)).name}" for kind in kinds}
    assert set(libraries(wheel)) == expected

    (tree / "qsam2_ao/native/csrc/one.cpp").write_text('extern "C" int two() { return 2; }\n')
    changed = libraries(built(tree))
    assert len(changed) == len(expected)
    assert not expected.intersection(changed), "a library of the sources before"


def test_a_wheel_without_them_is_for_every_platform(tree: Path) -> None:
    for environment in ({"QSAM2_BUILD_KERNELS": "0"}, {"CXX": "false"}):
        wheel = built(tree, **environment)
        assert wheel.name.endswith("-py3-none-any.whl")
        assert not libraries(wheel)
    for command, said in (("no-such-compiler", "There is no C"), ("false", r"compiler false fails")):
        with pytest.raises(AssertionError, match=said):
            built(tree, CXX=command, QSAM2_BUILD_KERNELS="1")


def test_an_editable_install_compiles_nothing(tree: Path) -> None:
    wheel = built(tree, "build_editable", CXX="false")
    assert not libraries(wheel)
    assert not list((tree / "qsam2_ao").rglob("*.so"))


def test_only_wheels_with_kernels_ask_for_torch(tree: Path) -> None:
    call = "from build_backend import *; print(get_requires_for_build_wheel(), get_requires_for_build_editable())"
    for kernels, asked in (("1", 1), ("0", 0)):
        assert sum("torch" in word for word in called(tree, call, QSAM2_BUILD_KERNELS=kernels)) == asked


_LOADED = """
import sys, torch
from qsam2_ao.native import build, load_kernels
load_kernels()
print(build.kernel_library())
torch.manual_seed(0)
print(torch.ops.qsam2.quantize(torch.randn(3, 70), 0.03, 90.0, 255).tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(why_unfit_for_kernels() is not None, reason=str(why_unfit_for_kernels()))
def test_an_installed_wheel_needs_no_compiler_and_no_folder(tree: Path) -> None:
    (tree / "qsam2_ao/native/csrc/one.cpp").unlink()
    leave = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(ROOT / "qsam2_ao", tree / "qsam2_ao", ignore=leave, dirs_exist_ok=True)
    site = tree.parent / "site"
    zipfile.ZipFile(built(tree, QSAM2_BUILD_KERNELS="1")).extractall(site)
    bare = {"PYTHONPATH": str(site), "PATH": str(tree.parent), "XDG_CACHE_HOME": "/dev/null", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", _LOADED], env=bare, cwd=site, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    library, values = run.stdout.splitlines()[-2:]
    assert Path(library).parent == site / "qsam2_ao/native"
    load_kernels()
    torch.manual_seed(0)
    assert values == str(torch.ops.qsam2.quantize(torch.randn(3, 70), 0.03, 90.0, 255).tolist())

    needed = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True)
    names = [line.split()[1] for line in needed.stdout.splitlines() if "@" not in line]
    foreign = [name for name in names if not name.startswith(("torch_", "aoti_torch_", "_ITM_", "__gmon_"))]
    assert not foreign, "not of torch's stable interface"
