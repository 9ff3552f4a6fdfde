"""What runs without the packages that only some tasks need, and what is said where they are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao.errors import MissingPackageError
from qsam2_ao.optional import CALLED, EXTRAS, needed

_WITHOUT = """
import sys
from importlib.machinery import PathFinder

BLOCKED = {"tensordict", "tensorboard", "matplotlib", "av", "vos_benchmark", "cv2", "scipy", "onnx", "openvino"}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""

_SEGMENT = """
import numpy as np, qsam2_ao
from sam2.sam2_image_predictor import SAM2ImagePredictor
from sam2.sam2_video_predictor import SAM2VideoPredictor
from qsam2_ao.predictors import predictor_state
from qsam2_ao.segmentation import ObjectPrompt, segment_file, track_frames

file, picture, folder = sys.argv[1:]
model = qsam2_ao.load_qsam2(file, model_class=SAM2VideoPredictor)
assert SAM2ImagePredictor(model) is not None
prompts = {1: ObjectPrompt([(40.0, 50.0, 1)])}
assert segment_file(model, picture, prompts, folder).mask.exists()
assert len(list(track_frames(model, [np.zeros((96, 96, 3), np.uint8)] * 2, prompts))) == 2
data = [np.zeros((96, 96, 3), np.uint8)]
prepared = qsam2_ao.prepare_qsam2(qsam2_ao.load_embedded(), {"image_encoder": "w4a8"}, calibration_data=data)
qsam2_ao.save_qsam2(qsam2_ao.convert_qsam2(prepared), folder + "/again.safetensors")
assert not BLOCKED & set(sys.modules)
"""

_NAMED = """
from pathlib import Path
import numpy as np
from qsam2_ao.errors import MissingPackageError

def train():
    import qsam2_ao.training.qat
def read():
    from qsam2_ao.data.video import read_frames
    Path("clip.mp4").touch()
    next(read_frames("clip.mp4"))
def draw():
    from qsam2_ao.reporting.figures import new_figure
    new_figure()
def score():
    from qsam2_ao.evaluation import score_sequence
    score_sequence("still", np.ones((3, 8, 8), np.uint8), np.ones((3, 8, 8), np.uint8))
def compose():
    import qsam2_ao.data.real
def label():
    from qsam2_ao.evaluation.polygons import read_polygons
    read_polygons("photographs")
def choose():
    from qsam2_ao.sensitivity.assign import Choice, choose
    choose([[Choice(5, 1)]], 3)
tasks = ((train, "train"), (read, "video"), (draw, "plots"), (score, "eval"))
for task, extra in (*tasks, (choose, "train"), (compose, "train"), (label, "train")):
    try:
        task()
    except MissingPackageError as error:
        assert f'pip install "qsam2_ao[{extra}]"' in str(error), error
    else:
        raise AssertionError(task)
"""


def run(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _WITHOUT + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.mark.slow
def test_inference_and_quantizing_need_none_of_them(packed_file: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(tmp_path / "picture.png")
    done = run(_SEGMENT, packed_file, tmp_path / "picture.png", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    done = run(_NAMED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command_line_says_it_in_one_line(packed_file: Path, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    code = "from qsam2_ao.cli.main import main\nsys.argv[0] = 'qsam2'\nmain()"
    done = run(code, "track", packed_file, "clip.mp4", "--point", "1,1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith('error: reading and writing video files needs the package av: pip install "qsam2_ao[')
    assert done.stderr.count("\n") == 1


def test_what_is_there_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert needed("scipy.linalg").lapack
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r'the package nncf: pip install "qsam2_ao\[benchmark\]"') as caught:
        needed("nncf")
    assert caught.value.name == "nncf"


def test_every_package_is_in_its_extra() -> None:
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for package, (extra, _) in EXTRAS.items():
        brought = " ".join(project["optional-dependencies"][extra])
        assert CALLED.get(package, package) in brought, package
        assert CALLED.get(package, package) not in " ".join(project["dependencies"])
