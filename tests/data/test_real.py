from __future__ import annotations

import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from real_pictures import write_library, write_validation

from qsam2_ao.data.real import SCENE_KINDS, Library, SceneKind, draw_scene, scenes
from qsam2_ao.data.real.library import pick_object, trimmed
from qsam2_ao.data.real.looks import Camera, recolour
from qsam2_ao.data.real.motion import Affine, bend, smooth_path, source_map
from qsam2_ao.data.real.pictures import open_photographs, read_alpha, whole_objects
from qsam2_ao.errors import DataError
from qsam2_ao.evaluation.polygons import read_polygons


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_library(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def library(root: Path) -> Library:
    return Library.open(root, root / "backgrounds")


def test_reads_photographs_and_masks_of_8_and_16_bits(root: Path) -> None:
    nuclei = open_photographs(root / "nuclei")
    image, ids = nuclei.read(0)
    assert len(nuclei) == 2
    assert image.shape == (60, 80, 3)
    assert image.dtype == np.uint8
    assert np.unique(ids).tolist() == [0, 1, 2, 300]
    assert np.array_equal(image, np.array(Image.open(root / "nuclei" / "images" / "0.png")))  # RGB, not BGR
    assert np.unique(open_photographs(root / "people").read(1)[1]).tolist() == [0, 1, 2, 7]


def test_whole_objects_leaves_out_specks_and_frames() -> None:
    ids = np.zeros((100, 100), np.int32)
    ids[10:50, 10:50] = 4
    ids[15:45, 15:45] = 0  # 4 is a frame around nothing
    ids[60:90, 10:40] = 9
    ids[95:97, 95:97] = 11
    ids[60:80, 60:80] = 70000
    objects = whole_objects(ids)
    assert objects.dtype == np.uint8
    assert np.unique(objects).tolist() == [0, 1, 2]
    assert np.array_equal(objects > 0, (ids == 9) | (ids == 70000))


def test_no_photograph_has_more_objects_than_ids_for_them() -> None:
    ids = np.arange(400, dtype=np.int32).reshape(20, 20).repeat(8, 0).repeat(8, 1)
    assert whole_objects(ids).max() == 199


def test_missing_and_damaged_files_are_named(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="images"):
        open_photographs(tmp_path)
    with pytest.raises(DataError, match="people"):
        Library.open(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="no such mask"):
        open_photographs(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_alpha(tmp_path / "images" / "a.jpg")
    with pytest.raises(DataError, match="alpha"):
        read_alpha(root / "backgrounds" / "0.jpg")


def test_a_person_is_often_one_object_and_otherwise_its_clothes(library: Library) -> None:
    rng = np.random.default_rng(0)
    counts = {int(library.photograph(rng)[1].max()) for _ in range(30)}
    assert counts == {1, 3}


def test_the_memory_of_decoded_photographs_is_bounded(root: Path) -> None:
    library = Library.open(root)
    small = Library(library.sets, library.cutouts, library.backgrounds, keep=2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        small.photograph(rng)
    assert len(small._memory) == 2
    none = Library(library.sets, library.cutouts, library.backgrounds, keep=0)
    for _ in range(3):
        none.photograph(rng)
    assert len(none._memory) <= 1


def test_sprites_are_trimmed_and_hold_something(library: Library) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        sprite = library.sprite(rng)
        solid = sprite[..., 3] > 127
        assert sprite.shape[2] == 4
        assert all(solid.any(axis)[[0, -1]].all() for axis in (0, 1))
    assert trimmed(np.zeros((4, 5, 4), np.uint8)).shape == (4, 5, 4)


def test_larger_objects_are_picked_more_often() -> None:
    ids = np.zeros((30, 30), np.uint8)
    ids[:20], ids[29, 29] = 1, 2
    rng = np.random.default_rng(0)
    assert sum(pick_object(rng, ids) == 1 for _ in range(50)) > 40


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_a_scene_is_a_function_of_the_generator(library: Library, kind: SceneKind) -> None:
    first, second = (draw_scene(kind, library, np.random.default_rng(5), size=64, frames=3) for _ in range(2))
    other = draw_scene(kind, library, np.random.default_rng(6), size=64, frames=3)
    length = 3 if kind in ("pair", "clip") else 1
    assert first.frames.shape == (length, 64, 64, 3)
    assert first.masks.shape == (length, 64, 64)
    assert first.frames.dtype == first.masks.dtype == np.uint8
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.masks, second.masks)
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_every_object_of_a_scene_is_seen_on_its_first_frame(library: Library, kind: SceneKind) -> None:
    for seed in range(8):
        scene = draw_scene(kind, library, np.random.default_rng(seed), size=64, frames=2)
        assert scene.object_ids
        for identity in scene.object_ids:
            assert (scene.masks[0] == identity).sum() >= 12


def test_masks_follow_what_is_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bright discs over dark photographs: where the mask says disc, the picture is bright."""
    root = write_library(tmp_path)
    for path in [*root.glob("*/images/*"), *(root / "backgrounds").iterdir()]:
        Image.new("RGB", (80, 60), (12, 12, 12)).save(path)
    for path in (root / "cutouts").iterdir():
        alpha = np.array(Image.open(path))[..., 3]
        Image.fromarray(np.dstack([np.full((*alpha.shape, 3), 235, np.uint8), alpha])).save(path, lossless=True)
    library = Library.open(root)
    # Cut-outs alone: people and scraps are as dark as what is behind.
    monkeypatch.setattr(scenes, "_thing", lambda library, rng: trimmed(read_alpha(library.cutouts[0])))
    inside, outside = [], []
    for seed in range(25):
        scene = draw_scene("clip", library, np.random.default_rng(seed), size=96, frames=3)
        for frame, mask in zip(scene.frames, scene.masks, strict=True):
            brightness = frame.mean(-1)
            solid = cv2.erode((mask >= 200).astype(np.uint8), np.ones((9, 9))) > 0
            free = cv2.dilate((mask >= 200).astype(np.uint8), np.ones((15, 15))) == 0
            inside += brightness[solid].tolist()
            outside += brightness[free].tolist()
    assert np.mean(outside) < 40
    assert np.quantile(inside, 0.1) > 100


def test_a_kind_that_does_not_exist_is_refused(library: Library) -> None:
    with pytest.raises(DataError, match="kind must be"):
        draw_scene("film", library, np.random.default_rng(0))  # type: ignore[arg-type]


def test_a_folder_without_visible_objects_is_refused(tmp_path: Path) -> None:
    root = write_library(tmp_path)
    for path in root.glob("*/masks/*.png"):
        ids = np.zeros((60, 80), np.uint8)
        ids[0, 0:2] = 1  # too little to be asked about, and yet an object of a person
        Image.fromarray(ids).save(path)
    with pytest.raises(DataError, match="visible object"):
        draw_scene("photograph", Library(Library.open(root).sets[:1], (), ()), np.random.default_rng(0), size=64)


def test_a_folder_without_any_object_is_refused(tmp_path: Path) -> None:
    root = write_library(tmp_path)
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(np.zeros((60, 80), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"no photograph of .* are the masks empty"):
        draw_scene("photograph", Library.open(root), np.random.default_rng(0), size=64)


def test_backgrounds_may_be_as_small_as_a_pixel(tmp_path: Path) -> None:
    root = write_library(tmp_path / "library")
    backgrounds = tmp_path / "backgrounds"
    backgrounds.mkdir()
    for size in ((1, 1), (2, 2), (300, 1)):
        Image.new("RGB", size).save(backgrounds / f"{size[0]}x{size[1]}.png")
    found = Library.open(root)
    small = Library(found.sets, found.cutouts, tuple(sorted(backgrounds.iterdir())))
    for seed in range(10):
        draw_scene("clip", small, np.random.default_rng(seed), size=64, frames=2)


def test_motion_places_the_middle_and_the_extent() -> None:
    still = np.zeros(1)
    motion = Affine(still + 0.25, still + 0.5, still + 0.5, still + 0.25, still, still)
    matrix = motion.matrix(0, 100, (10, 20))
    assert np.allclose(matrix @ [25, 50, 1], [10, 5])  # the frame's (25, 50) is the thing's centre
    assert np.allclose(matrix @ [50, 62.5, 1], [20, 10])  # and its corner lies half its extent away
    place = source_map(matrix, 100, (10, 20), None)
    assert place.shape == (100, 100, 2)
    assert np.allclose(place[50, 25], [10.2 - 0.5, 5.2 - 0.5], atol=1e-4)


def test_bending_moves_what_it_bends_by_as_much() -> None:
    motion = Affine(*(np.full(1, value) for value in (0.5, 0.5, 1.0, 1.0, 0.0, 0.0)))
    matrix = motion.matrix(0, 50, (50, 50))
    flat = source_map(matrix, 50, (50, 50), None)
    moved = source_map(matrix, 50, (50, 50), np.full((4, 4, 2), 0.1, np.float32))
    assert np.allclose(moved - flat, 5, atol=1e-3)
    grids = bend(np.random.default_rng(0), 6, 0.05)
    assert len(grids) == 6
    assert max(np.abs(a - b).max() for a, b in itertools.pairwise(grids)) < 0.2


def test_a_path_without_speed_stays_where_it_is() -> None:
    assert smooth_path(np.random.default_rng(0), 5, 0.0).tolist() == [0.0] * 5
    assert np.ptp(smooth_path(np.random.default_rng(0), 5, 0.1)) > 0


def test_looks_keep_shape_and_alpha() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (20, 30, 4)).astype(np.uint8)
    for _ in range(10):
        result = recolour(rng, pixels)
        assert result.shape == pixels.shape
        assert np.array_equal(result[..., 3], pixels[..., 3])
    same = recolour(rng, pixels[..., :3].copy(), 0.0)
    assert np.abs(same.astype(int) - pixels[..., :3]).max() <= 1
    for seed in range(20):
        camera = Camera(np.random.default_rng(seed), 2, 64)
        frame = camera(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8), 1)
        assert frame.shape == (64, 64, 3)
        assert frame.dtype == np.uint8


def test_polygons_become_masks(tmp_path: Path) -> None:
    folder = write_validation(tmp_path) / "coco128"
    samples = read_polygons(folder)
    assert [sample.name for sample in samples] == ["0", "1"]
    assert samples[0].masks.shape == (2, 40, 64)  # the third polygon is smaller than 16 pixels
    assert samples[0].masks[0][12:28, 18:46].all()
    assert abs(int(samples[0].masks[0].sum()) - 20 * 32) < 80
    assert len(read_polygons(folder, count=1, per_image=1)[0].masks) == 1


def test_broken_polygons_are_named(tmp_path: Path) -> None:
    folder = write_validation(tmp_path) / "coco128"
    (folder / "labels" / "0.txt").write_text("0 0.1 0.2 0.3\n")
    with pytest.raises(DataError, match=r"0\.txt, line 1"):
        read_polygons(folder)
    for path in (folder / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no photograph"):
        read_polygons(folder)
