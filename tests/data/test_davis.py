from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qsam2_ao.data.davis import read_davis
from qsam2_ao.data.procedural import generate_sequence, write_sequence
from qsam2_ao.data.types import VideoSequence
from qsam2_ao.errors import DataError


def ids_of(sequence: VideoSequence, t: int) -> NDArray[np.int64]:
    annotation = sequence.annotation(t)
    assert annotation is not None
    return annotation.ids()


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    for index in range(2):
        write_sequence(generate_sequence("test", index, num_frames=4, size=(48, 64)), tmp_path / "davis")
    return tmp_path / "davis"


def test_reads_what_the_generator_writes(davis: Path) -> None:
    sequences = read_davis(davis)
    assert [sequence.name for sequence in sequences] == ["test-00000", "test-00001"]
    for index, sequence in enumerate(sequences):
        original = generate_sequence("test", index, num_frames=4, size=(48, 64))
        assert isinstance(sequence, VideoSequence)
        assert isinstance(original, VideoSequence)
        assert len(sequence) == 4
        assert sequence.object_ids == original.object_ids
        for t in range(4):
            assert np.array_equal(ids_of(sequence, t), original.masks[t])
            error = sequence.frames[t].astype(int) - original.frames[t]
            assert np.abs(error).mean() < 8  # JPEG


@pytest.mark.parametrize("resolutions", [["480p"], ["Full-Resolution"], ["480p", "Full-Resolution"]])
def test_finds_the_resolution_folder(davis: Path, resolutions: list[str]) -> None:
    for kind in ("JPEGImages", "Annotations"):
        shutil.move(davis / kind, davis / "moved")
        for resolution in resolutions:
            shutil.copytree(davis / "moved", davis / kind / resolution)
        shutil.rmtree(davis / "moved")
    sequence = read_davis(davis, ["test-00001"])[0]
    assert sequence.frames.paths[0].parent.parent.name == resolutions[0]
    assert read_davis(davis, resolution=resolutions[-1])[0].frames[0].shape == (48, 64, 3)
    with pytest.raises(DataError, match=r"1080p: no such folder"):
        read_davis(davis, resolution="1080p")
    if len(resolutions) == 2:
        for kind in ("JPEGImages", "Annotations"):
            (davis / kind / "480p").rename(davis / kind / "240p")
        with pytest.raises(DataError, match=r"several resolutions \(240p, Full-Resolution\)"):
            read_davis(davis)


def test_frames_without_annotation(davis: Path) -> None:
    (davis / "Annotations/test-00000/00002.png").unlink()
    sequence = read_davis(davis)[0]
    assert sequence.annotated == (0, 1, 3)
    assert sequence.object_ids


def test_nothing_is_read_before_it_is_asked_for(davis: Path) -> None:
    (davis / "JPEGImages/test-00000/00003.jpg").write_text("damaged")
    (davis / "Annotations/test-00000/00003.png").write_text("damaged")
    sequence = read_davis(davis)[0]
    assert sequence.frames[2].shape == (48, 64, 3)
    with pytest.raises(DataError, match=r"00003\.jpg cannot be read"):
        sequence.frames[3]
    with pytest.raises(DataError, match=r"00003\.png cannot be read"):
        sequence.annotation(-1)


def test_other_sizes_are_named(davis: Path) -> None:
    Image.new("L", (32, 48)).save(davis / "Annotations/test-00000/00001.png")
    Image.new("RGB", (64, 40)).save(davis / "JPEGImages/test-00000/00002.jpg")
    sequence = read_davis(davis)[0]
    with pytest.raises(DataError, match=r"00001\.png is 32 x 48 pixels, .* 64 x 48"):
        sequence.annotation(1)
    with pytest.raises(DataError, match=r"00002\.jpg is 64 x 40 pixels"):
        sequence.frames[2]


def test_missing_parts_are_named(davis: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="JPEGImages: no such folder"):
        read_davis(tmp_path / "nothing")
    with pytest.raises(DataError, match="has no sequence 'dog'"):
        read_davis(davis, ["dog"])
    (davis / "JPEGImages/test-00000/00001.jpg").unlink()
    with pytest.raises(DataError, match=r"00001\.png has no frame of that name"):
        read_davis(davis)
    for path in (davis / "Annotations/test-00001").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"Annotations/test-00001 has no masks"):
        read_davis(davis, ["test-00001"])
    for path in (davis / "JPEGImages/test-00001").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"JPEGImages/test-00001 has no frames"):
        read_davis(davis, ["test-00001"])
    shutil.rmtree(davis / "Annotations")
    (davis / "Annotations").mkdir()
    with pytest.raises(DataError, match="has no sequences"):
        read_davis(davis)


def test_void_is_no_object(davis: Path) -> None:
    for path in (davis / "Annotations/test-00000").iterdir():
        mask = np.array(Image.open(path))
        mask[:5] = 255
        Image.fromarray(mask).save(path)
    Image.fromarray(np.where(np.arange(48)[:, None] < 5, 255, np.zeros((48, 64))).astype(np.uint8)).save(
        davis / "Annotations/test-00000/00003.png"  # all objects are away
    )
    sequence = read_davis(davis)[0]
    assert 255 not in sequence.object_ids
    assert sequence.object_ids[0] == 1
    assert all((ids_of(sequence, t)[:5] == 255).all() for t in sequence.annotated)


def test_black_and_white_masks_are_one_object(davis: Path) -> None:
    for path in (davis / "Annotations/test-00000").iterdir():
        Image.fromarray(np.where(np.array(Image.open(path)) > 0, 255, 0).astype(np.uint8)).save(path)
    sequence = read_davis(davis)[0]
    assert sequence.object_ids == (1,)


def test_frames_of_any_format_in_natural_order(davis: Path) -> None:
    for kind, ending in (("JPEGImages", "tif"), ("Annotations", "png")):
        for t, path in enumerate(sorted((davis / kind / "test-00000").iterdir())):
            Image.open(path).save(path.with_name(f"frame_{8 + t}.{ending}"))
            path.unlink()
    (davis / "JPEGImages/test-00000/._frame_8.tif").write_bytes(b"\0\5\x16\7")
    sequence = read_davis(davis)[0]
    assert [path.name for path in sequence.frames.paths] == [f"frame_{t}.tif" for t in range(8, 12)]
    assert sequence.annotated == (0, 1, 2, 3)


@pytest.mark.parametrize("extra", ["@eaDir", ".ipynb_checkpoints", "old"])
def test_a_folder_inside_of_videos_is_no_resolution(davis: Path, extra: str) -> None:
    names = [sequence.name for sequence in read_davis(davis)]
    for kind in ("JPEGImages", "Annotations"):
        for video in list((davis / kind).iterdir()):
            (video / extra / "x").mkdir(parents=True)
        (davis / kind / "@eaDir" / "x").mkdir(parents=True)
    assert [sequence.name for sequence in read_davis(davis)] == names
