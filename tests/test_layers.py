"""Imports point down the layers that docs/architecture.md draws, never up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: From the top. What is moved stands where its new home is, for as long as the old name forwards to it.
LAYERS = (
    "__main__ cli benchmark comparison html_report web",
    "workflow workspace segmentation export",
    "training evaluation sensitivity predictors reporting",
    "prepare convert checkpoint eager_qat pt2e",
    "recipe calibration deploy  backend_config fake_quant lowering qconfig qconfig_rules tensors",
    "quantizers graph models stage native data ranks",
    "compat devices errors spelling files tensor_file interrupts threads openmp optional progress rich_repr",
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names.split()}


def only_for_types(tree: ast.Module) -> set[ast.AST]:
    return {
        inside
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inside in ast.walk(statement)
    }


def imported(path: Path) -> Iterator[str]:
    """Folders and modules of the package that a file imports relatively, by their first name."""
    tree = ast.parse(path.read_text())
    skipped = only_for_types(tree)
    folder = path.relative_to(ROOT).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node not in skipped:
            found = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            names = [found[1]] if len(found) > 1 and found[1] else [alias.name for alias in node.names]
            yield from names


def test_every_folder_and_module_has_its_layer() -> None:
    found = {
        path.stem for path in (ROOT / "qsam2_ao").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert found - {"__init__"} <= RANK.keys()


@pytest.mark.parametrize("name", sorted(RANK))
def test_imports_point_down(name: str) -> None:
    package = ROOT / "qsam2_ao"
    files = [package / f"{name}.py"] if (package / f"{name}.py").exists() else sorted((package / name).rglob("*.py"))
    up = {
        f"{path.relative_to(ROOT)} imports {other}"
        for path in files
        for other in imported(path)
        if RANK.get(other, RANK[name]) < RANK[name]
    }
    assert not up
