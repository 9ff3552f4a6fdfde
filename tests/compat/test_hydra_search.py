from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException

from qsam2_ao.compat.hydra_search import sam2_configs

TINY = "configs/sam2.1/sam2.1_hiera_t.yaml"


@pytest.fixture
def foreign_hydra(tmp_path: Path) -> Iterator[Path]:
    """A program that has pointed Hydra at its own folder."""
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    state = GlobalHydra.instance()
    before, state.hydra = state.hydra, None
    initialize_config_dir(str(tmp_path), version_base="1.2")
    yield tmp_path
    state.hydra = before


def test_official_names_resolve_in_a_program_with_its_own_hydra(foreign_hydra: Path) -> None:
    with pytest.raises(MissingConfigException):
        compose(TINY)
    with sam2_configs():
        assert compose(TINY).model.image_size == 1024
    assert compose("mine").answer == 42


def test_hydra_is_left_as_sam2_set_it() -> None:
    before = GlobalHydra.instance().hydra
    with pytest.raises(KeyError), sam2_configs():
        raise KeyError
    assert GlobalHydra.instance().hydra is before
    assert compose(TINY).model.image_size == 1024


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("model: {image_size: 96}\n")
    with sam2_configs(tmp_path):
        assert compose("small").model.image_size == 96
