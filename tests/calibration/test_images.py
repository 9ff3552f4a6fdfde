from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import qsam2_ao  # noqa: F401  (makes sam2's transforms importable)
from qsam2_ao.calibration.images import CalibrationImages, load_images
from qsam2_ao.errors import CalibrationError

SIZE = 32


class Model(nn.Linear):
    """All that is asked of a model: a size, and parameters that have a device."""

    image_size = SIZE


MODEL = Model(1, 1)


def pictures(count, height=20, width=30):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def tensors(images, **settings):
    return torch.cat(list(load_images(images, **settings).batches(MODEL)))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nested").mkdir()
    for k, picture in enumerate(pictures(4)):
        Image.fromarray(picture).save(tmp_path / ("nested" if k % 2 else ".") / f"{k}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_every_kind_of_input_gives_what_sam2s_own_transforms_give(folder):
    from sam2.utils.transforms import SAM2Transforms

    transforms = SAM2Transforms(SIZE, mask_threshold=0.0)
    arrays = pictures(4)
    expected = transforms.forward_batch(arrays)
    as_uint8 = [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    as_float = [t / 255 for t in as_uint8]
    paths = [folder / "0.png", folder / "nested" / "1.png", folder / "2.png", folder / "nested" / "3.png"]
    for images in (
        arrays,
        [Image.fromarray(a) for a in arrays],
        as_uint8,
        as_float,
        torch.stack(as_float),
        [torch.stack(as_float[:3]), as_float[3]],
        (a for a in arrays),
        [(a, "label") for a in arrays],
        [{"image": a} for a in arrays],
        [str(path) for path in paths],
        DataLoader(as_float, batch_size=3),
        DataLoader(as_uint8, batch_size=3, collate_fn=list),
        [paths],
        [[a, "label"] for a in arrays],
    ):
        torch.testing.assert_close(tensors(images), expected, rtol=1e-5, atol=1e-5)
    from_folder = tensors(folder)
    for image in expected:
        assert min((image - other).abs().max() for other in from_folder) < 1e-5


def test_batches_can_be_read_again_and_a_generator_too():
    images = CalibrationImages(array for array in pictures(5))
    first, second = ([*images.batches(MODEL, 2)] for _ in range(2))
    assert [len(batch) for batch in first] == [2, 2, 1]
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert load_images(images) is images


def test_grayscale_and_transparent_pictures_become_rgb():
    gray = Image.fromarray(pictures(1)[0][:, :, 0])
    assert tensors([gray, gray.convert("RGBA"), gray.convert("P")]).shape == (3, 3, SIZE, SIZE)


def test_sam2s_training_batches_are_normalised_already():
    clip = torch.randn(3, 3, SIZE, SIZE)
    assert torch.equal(tensors([SimpleNamespace(flat_img_batch=clip)]), clip)


def test_more_images_than_wanted_are_chosen_by_the_seed():
    arrays = pictures(20)
    chosen = [tensors(arrays, max_images=5, seed=seed) for seed in (0, 0, 1)]
    assert len(chosen[0]) == 5
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


def test_an_endless_generator_is_read_as_far_as_needed():
    def endless():
        while True:
            yield pictures(1)[0]

    assert len(CalibrationImages(endless(), max_images=7)) == 7


@pytest.mark.parametrize("empty", [[], iter(()), torch.empty(0, 3, 8, 8)])
def test_empty_set_is_refused(empty):
    with pytest.raises(CalibrationError, match="empty"):
        CalibrationImages(empty)


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="nowhere"):
        CalibrationImages(tmp_path / "nowhere")
    with pytest.raises(CalibrationError, match="holds no image"):
        CalibrationImages(tmp_path)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"item 1.*\[H, W, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"item 1.*\[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), r"item 1.*uint8"),
        (torch.zeros(1, 4, 4), r"item 1.*\[3, H, W\]"),
        (torch.zeros(3, 0, 4), r"item 1.*\[3, H, W\]"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"item 1.*uint8 or floating"),
        (torch.full((3, 4, 4), float("nan")), "item 1.*NaN"),
        (torch.full((3, 4, 4), 255.0), r"item 1.*0\.\.1"),
        ({"pixels": 1}, "item 1.*without 'image'"),
        (3, "item 1.*int"),
    ],
)
def test_unusable_items_are_named(item, message):
    with pytest.raises(CalibrationError, match=message):
        tensors([pictures(1)[0], item])


def test_unreadable_file_is_named(folder):
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(CalibrationError, match=r"broken\.jpg.*not a readable image"):
        tensors(folder)
    truncated = folder / "0.png"
    truncated.write_bytes(truncated.read_bytes()[:200])
    with pytest.raises(CalibrationError, match=r"0\.png"):
        tensors([truncated])


def test_a_labelled_data_set_gives_its_photographs(tmp_path):
    for folder, ending in (("JPEGImages/480p/bear", "jpg"), ("Annotations/480p/bear", "png"), (".checkpoints", "png")):
        (tmp_path / folder).mkdir(parents=True)
        for k in range(3):
            Image.new("RGB", (30, 20), (200, 200, 200)).save(tmp_path / folder / f"{k}.{ending}")
    (tmp_path / "JPEGImages/480p/bear/._0.jpg").write_bytes(b"\0\5\x16\7")
    assert tensors(tmp_path).shape[0] == 3
    Image.new("L", (30, 20)).save(tmp_path / "JPEGImages/480p/bear/0.png")
    with pytest.raises(CalibrationError, match=r"0\.jpg and 0\.png have one name"):
        CalibrationImages(tmp_path)


def test_depth_and_orientation_are_those_of_the_one_reader(tmp_path):
    ramp = np.linspace(0, 65535, SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(ramp).save(tmp_path / "deep.png", exif=exif)
    grey = np.rint(ramp / 257).astype(np.uint8)
    expected = tensors([np.repeat(grey[::-1, ::-1, None], 3, 2)])
    torch.testing.assert_close(tensors(tmp_path), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(tensors([Image.fromarray(ramp)]), tensors([np.repeat(grey[..., None], 3, 2)]))
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(CalibrationError, match=r"float\.tif has values from 0 to 65535"):
        tensors([tmp_path / "float.tif"])


def test_wrong_arguments_are_refused():
    with pytest.raises(CalibrationError, match="float"):
        CalibrationImages(1.5)
    with pytest.raises(CalibrationError, match="dict"):
        CalibrationImages({"a": 1})
    with pytest.raises(CalibrationError, match="max_images"):
        CalibrationImages(pictures(1), max_images=0)
    with pytest.raises(CalibrationError, match="batch_size"):
        list(CalibrationImages(pictures(1)).batches(MODEL, 0))
    with pytest.raises(CalibrationError, match="Linear has no image_size"):
        list(CalibrationImages(pictures(1)).batches(nn.Linear(1, 1)))
