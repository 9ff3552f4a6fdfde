"""Id maps: who owns a pixel, and what the stored file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from qsam2_ao.reporting.label_maps import is_label_map, label_map, save_label_map


def test_the_surest_object_owns_a_pixel_and_nobody_owns_doubt():
    first = np.array([[5.0, -1.0, 1.0, -3.0]], np.float32)
    second = np.array([[4.0, 2.0, 0.5, -2.0]], np.float32)
    np.testing.assert_array_equal(label_map({9: first, 200: second}), [[9, 200, 9, 0]])


def test_the_file_holds_the_ids_and_shows_colours(tmp_path: Path):
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    with Image.open(save_label_map(ids, tmp_path / "masks" / "00000.png")) as stored:
        assert stored.mode == "P"
        np.testing.assert_array_equal(np.asarray(stored), ids)
        assert stored.convert("RGB").getpixel((1, 0)) == (128, 0, 0)


def test_of_equal_objects_the_first_owns_the_pixel_and_values_that_are_none_count_as_outside():
    first = np.array([[3.0, np.nan, 0.0]], np.float32)
    second = np.array([[3.0, 1.0, np.nan]], np.float32)
    np.testing.assert_array_equal(label_map({4: first, 5: second}), [[4, 5, 0]])


def test_what_this_package_wrote_is_told_from_masks_of_the_users(tmp_path: Path):
    ids = np.array([[0, 1], [2, 0]], np.uint8)
    assert is_label_map(save_label_map(ids, tmp_path / "ours.png"))
    Image.fromarray(ids).save(tmp_path / "theirs.png")
    (tmp_path / "text.png").write_text("no picture")
    assert not any(is_label_map(tmp_path / name) for name in ("theirs.png", "text.png", "absent.png"))
