"""Models' YAML files, and what is said about other ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import sam2
from sam2.modeling.sam2_base import SAM2Base

from qsam2_ao.errors import QSAM2Error
from qsam2_ao.models.embedded import EMBEDDED_CONFIG
from qsam2_ao.models.official import build_official

TRAINER = Path(sam2.__path__[0]) / "configs/sam2.1_training/sam2.1_hiera_b+_MOSE_finetune.yaml"


@pytest.mark.parametrize("name", ["mine.yml", "mine.YAML"])
def test_any_ending_of_yaml(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(EMBEDDED_CONFIG.read_text())
    assert build_official(str(tmp_path / name), model_class=SAM2Base).image_size == 96


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", "is a list"),
        ("just words", "no YAML file that can be read|is no config|is empty"),
        ("model: {_target_: [unclosed", r"no YAML file that can be read .*line 1"),
        ("model:\n\t- tabs", "no YAML file that can be read"),
        ("\0\1\2", "no YAML file that can be read"),
        ("train: images/\nnames: [cat, dog]\n", "is no config of a model: it has train, names"),
        ("model: yolov8n.pt\n", "no class under model._target_"),
        ("model: {}\n", "no class under model._target_"),
        ("defaults: [base]\nmodel: {}\n", "has a list of defaults"),
        ("model: {_target_: sam2.modeling.sam2_base.SAM2Base, image_size: '${no.such}'}", "cannot be read .*no"),
        ("model: {_target_: sam2.modeling.sam2_base.SAM2Base}", "no SAM2 can be built from it"),
        ("model: {_target_: sam2.modeling.sam2_base.SAM2Base, image_encoder: 3}", "no SAM2 can be built from it"),
    ],
)
def test_files_that_configure_no_model(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(QSAM2Error, match=rf"other\.yaml.*({message})"):
        build_official(str(path))


def test_the_trainers_config_is_named_as_such() -> None:
    with pytest.raises(QSAM2Error, match=r"configures SAM2's trainer, not a model; name the model .*sam2\.1-b\+"):
        build_official(str(TRAINER))


@pytest.mark.parametrize("target", ["os.system", "subprocess.run", "antigravity.geohash", "builtins.eval", "3"])
def test_no_other_code_is_run(tmp_path: Path, target: str) -> None:
    nested = EMBEDDED_CONFIG.read_text().replace("sam2.modeling.backbones.hieradet.Hiera", target)
    (tmp_path / "evil.yaml").write_text(nested)
    with pytest.raises(QSAM2Error, match="which is none of SAM2's classes"):
        build_official(str(tmp_path / "evil.yaml"))


def test_huge_files_are_not_parsed(tmp_path: Path) -> None:
    (tmp_path / "huge.yaml").write_text("a: b\n" * 300_000)
    with pytest.raises(QSAM2Error, match="more than 1 MiB"):
        build_official(str(tmp_path / "huge.yaml"))
