"""Imports of other packages that take a second and that most programs have no use for, put off until they are needed.

torch's compiler is what takes the time: torchvision imports it for one question, and torchao's own ``__init__`` for all
that torchao has.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from .torchao_import import import_noise_dropped

_ROI_ALIGN = "torchvision.ops.roi_align"
_COMPILER, _QUESTION = "torch._dynamo.utils", "is_compile_supported"


@contextmanager
def compiler_deferred() -> Iterator[None]:
    """Let torchvision's ``roi_align``, imported in the ``with`` block, import torch's compiler at its first call.

    No other module notices: the module has an ``__import__`` of its own.
    """
    own = vars(sys.modules[_ROI_ALIGN])
    own["__builtins__"] = {**vars(builtins), "__import__": _import}
    try:
        yield
    finally:
        own["__builtins__"] = builtins


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    if name == _COMPILER and tuple(fromlist or ()) == (_QUESTION,) and name not in sys.modules:
        return SimpleNamespace(**{_QUESTION: _is_compile_supported})
    return builtins.__import__(name, globals, locals, fromlist or (), level)


def _is_compile_supported(device_type: Any) -> Any:
    return getattr(importlib.import_module(_COMPILER), _QUESTION)(device_type)


def torchao_utils() -> ModuleType:
    """``torchao.utils`` without the rest of torchao, which is imported as ever by whoever imports it.

    Returns:
        The module, the same for all; as ``torchao.utils`` it is torchao's attribute once there is a torchao.

    Example:
        >>> torchao_utils().TorchAOBaseTensor.__name__
        'TorchAOBaseTensor'
    """
    name = "torchao.utils"
    if name in sys.modules or "torchao" in sys.modules:
        return importlib.import_module(name)
    package = importlib.util.find_spec("torchao")
    folders = package.submodule_search_locations if package is not None else None
    file = Path(folders[0], "utils.py") if folders else None
    if file is None or not file.is_file():
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Another thread may have imported it meanwhile.
    return sys.modules.setdefault(name, module)


@contextmanager
def torchao_whole() -> Iterator[None]:
    """Let torchao be imported in the ``with`` block, quietly, and have the module that was imported before it."""
    with import_noise_dropped():
        yield
    early = sys.modules.get("torchao.utils")
    if early is not None:
        sys.modules["torchao"].utils = early  # type: ignore[attr-defined]
