"""Finished steps are found again, unfinished ones are not, and other settings see neither."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qsam2_ao.errors import CheckpointError, QSAM2Error
from qsam2_ao.workspace import Workspace, fingerprint


def test_a_finished_step_is_not_run_again(tmp_path: Path):
    calls: list[int] = []

    def compute() -> dict[str, object]:
        calls.append(1)
        return {"score": 1.5, "shape": (2, 3)}

    first = Workspace(tmp_path, {"steps": 1, "seed": 0}).result("score", compute)
    again = Workspace(tmp_path, {"seed": 0, "steps": 1}).result("score", compute)
    assert first == again == {"score": 1.5, "shape": [2, 3]}
    assert len(calls) == 1


def test_an_error_of_a_step_is_none_of_the_disk(tmp_path: Path):
    def compute() -> None:
        raise FileNotFoundError("a frame")

    with pytest.raises(FileNotFoundError, match="a frame"):
        Workspace(tmp_path, {}).result("score", compute)


def test_other_settings_are_another_run(tmp_path: Path):
    assert Workspace(tmp_path, {"steps": 1}).result("n", lambda: 1) == 1
    assert Workspace(tmp_path, {"steps": 2}).result("n", lambda: 2) == 2
    stored = sorted(json.loads(p.read_text())["steps"] for p in tmp_path.glob("*/settings.json"))
    assert stored == [1, 2]


def test_a_run_is_found_where_an_earlier_one_left_it(tmp_path: Path):
    earlier = Workspace(tmp_path / "a.work", {"steps": 1})
    earlier.result("score", lambda: 5)
    places = sorted(tmp_path.glob("*.work"))
    again = Workspace(tmp_path / "b.work", {"steps": 1}, places)
    assert again.folder == earlier.folder
    assert again.result("score", lambda: 6) == 5
    assert Workspace(tmp_path / "b.work", {"steps": 2}, places).folder.parent == tmp_path / "b.work"


def test_an_interrupted_step_leaves_nothing(tmp_path: Path):
    work = Workspace(tmp_path, {})

    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work.file("model.bin", interrupted)
    assert [p.name for p in work.folder.iterdir()] == ["settings.json"]
    assert work.file("model.bin", lambda path: path.write_text("whole")).read_text() == "whole"


def test_a_damaged_result_is_named(tmp_path: Path):
    work = Workspace(tmp_path, {})
    (work.folder / "score.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"score\.json is damaged"):
        work.result("score", lambda: 1)


def test_discarding_keeps_other_runs(tmp_path: Path):
    root = tmp_path / "work"
    one, two = Workspace(root, {"a": 1}), Workspace(root, {"a": 2})
    one.discard()
    assert two.folder.exists()
    two.discard()
    assert not root.exists()


def test_a_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(QSAM2Error, match="cannot write"):
        Workspace(tmp_path / "file", {})


def test_fingerprints_change_with_the_files(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    folder, file = fingerprint(tmp_path), fingerprint(tmp_path / "a.jpg")
    os.utime(tmp_path / "a.jpg", (1, 1))
    assert fingerprint(tmp_path / "a.jpg") != file
    assert fingerprint(tmp_path) != folder
    (tmp_path / "b.jpg").write_bytes(b"2")
    assert fingerprint(tmp_path)[1] == 2  # type: ignore[index]
    before = fingerprint(tmp_path)
    (tmp_path / "a.jpg").rename(tmp_path / "c.jpg")
    assert fingerprint(tmp_path) != before
    other = tmp_path.with_name("elsewhere")
    other.mkdir()
    (tmp_path / "link").symlink_to(other, target_is_directory=True)
    (other / "round").symlink_to(tmp_path, target_is_directory=True)
    before = fingerprint(tmp_path)
    (other / "d.jpg").write_bytes(b"3")
    assert fingerprint(tmp_path) != before
    assert fingerprint("embedded") == ["embedded"]
    assert fingerprint(None) is None


def test_two_runs_cannot_have_one_folder(tmp_path: Path):
    work = Workspace(tmp_path, {"steps": 1})
    with work.locked():
        other = "from pathlib import Path; from qsam2_ao.workspace import Workspace; import sys\n"
        other += "with Workspace(Path(sys.argv[1]), {'steps': 1}).locked(): print('in')"
        result = subprocess.run([sys.executable, "-c", other, str(tmp_path)], capture_output=True, text=True)
        assert f"another run with the same settings is at work in {work.folder}" in result.stderr
        with Workspace(tmp_path, {"steps": 2}).locked():
            pass
    with work.locked():
        pass


def test_a_killed_run_leaves_no_lock(tmp_path: Path):
    code = "from pathlib import Path; from qsam2_ao.workspace import Workspace; import os, sys\n"
    code += "with Workspace(Path(sys.argv[1]), {}).locked(): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode != 0
    with Workspace(tmp_path, {}).locked():
        pass


def test_fingerprints_leave_out_what_is_written_meanwhile(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"1")
    own = [tmp_path / "out", tmp_path / "model.pt", None]
    before = fingerprint(tmp_path, own)
    (tmp_path / "out" / "videos").mkdir(parents=True)
    (tmp_path / "out" / "videos" / "a.json").write_bytes(b"2")
    (tmp_path / "model.pt").write_bytes(b"3")
    assert fingerprint(tmp_path, own) == before != fingerprint(tmp_path)
    # The folder itself is not left out.
    assert fingerprint(tmp_path, [tmp_path]) == fingerprint(tmp_path)
