"""The package's public names, and what importing it imports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import qsam2_ao


def test_every_public_name_is_where_type_checkers_look_for_it() -> None:
    tree = ast.parse(Path(qsam2_ao.__file__).read_text())
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {name.name: str(node.module) for node in checked.body for name in getattr(node, "names", ())}
    assert typed == qsam2_ao._HOMES
    assert sorted(typed) == sorted(qsam2_ao.__all__)
    assert set(qsam2_ao.__all__) <= set(dir(qsam2_ao))
    for name, home in typed.items():
        assert getattr(qsam2_ao, name) is getattr(importlib.import_module(f"qsam2_ao.{home}"), name)


def test_rooms_are_attributes_and_other_names_are_not() -> None:
    assert qsam2_ao.deploy is importlib.import_module("qsam2_ao.deploy")
    with pytest.raises(AttributeError, match="'qsam2_ao' has no attribute 'nothing'"):
        qsam2_ao.nothing  # noqa: B018
    with pytest.raises(ImportError):
        from qsam2_ao import nothing  # noqa: F401


def _top_level_imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found


def test_no_module_needs_what_windows_lacks_to_be_imported() -> None:
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for path in Path(qsam2_ao.__file__).parent.rglob("*.py"):
        assert not unix & _top_level_imports(path), path


_FIRST_USE = """
import sys, threading
sys.setswitchinterval(1e-5)
import qsam2_ao
assert not {"torch", "numpy"} & set(sys.modules), "imported by the package"
failed = []
def use(name):
    try:
        getattr(qsam2_ao, name)
    except BaseException as error:
        failed.append(repr(error))
names = ("load_qsam2", "prepare_qsam2", "layer_times", "lower_float")
threads = [threading.Thread(target=use, args=(name,)) for name in names]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not failed, failed
"""


@pytest.mark.slow
def test_nothing_is_imported_before_it_is_used_and_threads_may_use_it_first() -> None:
    done = subprocess.run([sys.executable, "-c", _FIRST_USE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
