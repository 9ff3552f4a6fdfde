"""SAM2's configuration names under Hydra, whatever else the program uses Hydra for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def sam2_configs(folder: Path | None = None) -> Iterator[None]:
    """Let ``build_sam2`` and its relatives find configurations by name inside the ``with`` block.

    ``import sam2`` points Hydra at SAM2's configurations only where Hydra is not in use yet; a program that
    has initialised it for itself gets "Cannot find primary config". Its own setting is restored afterwards.

    Args:
        folder: Look in this folder instead of in the sam2 package.

    Example:
        >>> with sam2_configs():  # doctest: +SKIP
        ...     model = build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", device="cpu")
    """
    from hydra import initialize_config_dir, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    state, version = GlobalHydra.instance(), VersionBase.instance()
    before = state.hydra, version.getbase()
    state.clear()
    try:
        if folder is None:
            initialize_config_module("sam2", version_base="1.2")
        else:
            initialize_config_dir(str(folder.resolve()), version_base="1.2")
        yield
    finally:
        state.hydra = before[0]
        version.version_base = before[1]
