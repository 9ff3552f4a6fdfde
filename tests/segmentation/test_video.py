"""Objects through a clip, from Python: prompts on any frame, in both directions of time."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qsam2_ao import load_embedded
from qsam2_ao.compat.quiet import propagate_quietly
from qsam2_ao.data.frames import ClipFrames
from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import Sequence, generate_sequence
from qsam2_ao.data.video import read_frames, write_video
from qsam2_ao.errors import CheckpointError, DataError, QSAM2Error
from qsam2_ao.predictors import predictor_state
from qsam2_ao.reporting.label_maps import save_label_map
from qsam2_ao.segmentation import ObjectPrompt, SavedAs, label_map, track_file, track_frames

FIRST, SECOND = ObjectPrompt(box=(20, 55, 60, 90)), ObjectPrompt([(94.0, 14.0, 1), (5.0, 5.0, 0)])


@pytest.fixture(scope="module")
def trained() -> Any:
    """The embedded model with its weights, whose masks are not all alike."""
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    return load_embedded(SAM2VideoPredictor)


@pytest.fixture(scope="module")
def clip() -> Sequence:
    return generate_sequence("test", 2, num_frames=10)


def by_sam2(predictor: Any, frames: Any, said: dict[int, tuple[int, ObjectPrompt]], **arguments: Any) -> Any:
    """Logits by object id of each frame; ``said``: object id -> frame and prompt."""
    state = predictor_state(predictor, frames)
    for object_id, (frame, prompt) in said.items():
        predictor.add_new_points_or_box(state, frame, object_id, **prompt.arrays())
    found = propagate_quietly(predictor, state, **arguments)
    return {t: dict(zip(list(ids), logits[:, 0].numpy().copy(), strict=True)) for t, ids, logits in found}


def same(ours: dict[int, Any], theirs: dict[int, Any]) -> None:
    assert list(ours) == list(theirs)
    for frame, ids in theirs.items():
        np.testing.assert_array_equal(ours[frame], ids, err_msg=f"frame {frame}")


def test_later_objects_start_on_their_frame(trained: Any, clip: Sequence) -> None:
    tracked = dict(track_frames(trained, iter(clip.frames), {2: {1: FIRST}, 3: {2: SECOND}, 8: {1: None}}))
    one = by_sam2(trained, clip.frames, {1: (2, FIRST)})
    other = by_sam2(trained, clip.frames, {2: (3, SECOND)})
    expected = {t: np.zeros((96, 96), np.uint8) for t in range(2)}
    expected |= {t: label_map((one[t] if t < 8 else {}) | other.get(t, {})) for t in range(2, 10)}
    same(tracked, expected)
    assert set(np.unique(tracked[3])) == {0, 1, 2}


def test_a_correction_is_sam2s_and_changes_nothing_before(trained: Any, clip: Sequence) -> None:
    plain = dict(track_frames(trained, clip.frames, {1: FIRST}))
    corrected = dict(track_frames(trained, clip.frames, {0: {1: FIRST}, 4: {1: SECOND}}))
    state = predictor_state(trained, clip.frames)
    trained.add_new_points_or_box(state, 0, 1, **FIRST.arrays())
    before = {t: m[0, 0].numpy() > 0 for t, _, m in propagate_quietly(trained, state, max_frame_num_to_track=4)}
    _, _, now = trained.add_new_points_or_box(state, 4, 1, **SECOND.arrays())
    after = {t: m[0, 0].numpy() > 0 for t, _, m in propagate_quietly(trained, state, start_frame_idx=5)}
    same(corrected, before | {4: now[0, 0].numpy() > 0} | after)
    assert all((corrected[t] == plain[t]).all() for t in range(4))
    assert any((corrected[t] != plain[t]).any() for t in range(4, 10))


def test_backward(trained: Any, clip: Sequence) -> None:
    tracked = dict(track_frames(trained, clip.frames, {7: {1: FIRST}, 3: {2: SECOND}}, direction="backward"))
    one = by_sam2(trained, clip.frames, {1: (7, FIRST)}, start_frame_idx=7, reverse=True)
    other = by_sam2(trained, clip.frames, {2: (3, SECOND)}, start_frame_idx=3, reverse=True)
    expected = {t: label_map(one[t] | other.get(t, {})) for t in range(8)}
    same(tracked, expected | {t: np.zeros((96, 96), np.uint8) for t in (8, 9)})


def test_both_ways(trained: Any, clip: Sequence) -> None:
    prompts = {3: {2: SECOND}, 6: {1: FIRST}}
    tracked = dict(track_frames(trained, list(clip.frames), prompts, direction="both"))
    forward = dict(track_frames(trained, clip.frames, prompts))
    back = {i: by_sam2(trained, clip.frames, {i: (t, p)}, start_frame_idx=t, reverse=True) for t, i, p in
            ((3, 2, SECOND), (6, 1, FIRST))}  # fmt: skip
    expected = {t: label_map(back[1][t] | back[2][t]) for t in range(3)}
    expected |= {t: np.where(forward[t] > 0, forward[t], back[1][t][1] > 0) for t in range(3, 6)}
    same(tracked, expected | {t: forward[t] for t in range(6, 10)})
    assert (tracked[4] == 1).any()
    assert (tracked[0] > 0).any()


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_files_hold_the_tracked_ids(
    trained: Any, clip: Sequence, tmp_path: Path, kind: str, direction: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "clip.mp4"
    if kind == "file":
        write_video(video, clip.frames)
    else:
        video = tmp_path / "frames"
        video.mkdir()
        for t, frame in enumerate(clip.frames):
            Image.fromarray(frame).save(video / f"{t + 100}.png")
    frames = list(read_frames(video))
    prompts = {2: {2: ObjectPrompt(mask=clip.masks[2] > 0)}, 5: {3: SECOND}}
    done = track_file(trained, video, prompts, tmp_path / "out", direction=direction, progress=False)
    assert capsys.readouterr().err == ""
    tracked = dict(track_frames(trained, frames, prompts, direction=direction))
    assert done.frames == len(tracked) == 10
    names = [f"{t:05d}.png" if kind == "file" else f"{t + 100}.png" for t in range(10)]
    assert sorted(path.name for path in done.masks.iterdir()) == names
    for frame, ids in tracked.items():
        np.testing.assert_array_equal(read_ids(done.masks / names[frame]), ids)
    assert done.visible == {i: sum(bool((ids == i).any()) for ids in tracked.values()) for i in (2, 3)}
    assert len(list(read_frames(done.overlay))) == 10


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_annotations_of_all_frames_instead_of_pictures(
    trained: Any, clip: Sequence, tmp_path: Path, direction: Any
) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    prompts = {2: {2: ObjectPrompt(mask=clip.masks[2] > 0)}}
    (tmp_path / "frames").mkdir()
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame).save(tmp_path / "frames" / f"frame_{t + 8}.png")
    done = track_file(
        trained, tmp_path / "frames", prompts, tmp_path / "out", direction=direction, save=["rle"], progress=False
    )
    assert (done.masks, done.overlay, done.polygons) == (None, None, None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rle.json"]
    read = coco.COCO(done.rle)
    tracked = dict(track_frames(trained, list(clip.frames), prompts, direction=direction))
    assert [image["file_name"] for image in read.imgs.values()] == [f"frame_{t + 8}.png" for t in range(10)]
    masks = {a["image_id"] - 1: read.annToMask(a) for a in read.anns.values()}
    for frame, ids in tracked.items():
        assert np.array_equal(masks.get(frame, np.zeros_like(ids)), ids == 2)
    assert len(masks) == done.visible[2] > 3


def test_masks_of_another_clip_are_not_mixed_in(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip.frames)

    def track(count: int) -> None:
        frames = ClipFrames(tmp_path / "clip.mp4", count)
        track_file(trained, frames.path, {1: FIRST}, tmp_path / "out", frames=frames, save=["masks"], progress=False)

    track(3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "masks").iterdir()}
    with pytest.raises(DataError, match=r"masks holds 1 mask of other frames, such as 00002\.png"):
        track(2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "masks").iterdir()} == before
    track(4)
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 4


def test_masks_of_the_users_own_are_not_replaced(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip.frames[:3])
    annotated = tmp_path / "out" / "masks" / "00001.png"
    annotated.parent.mkdir(parents=True)
    Image.fromarray(clip.masks[1]).save(annotated)
    before = annotated.read_bytes()
    with pytest.raises(DataError, match=r"holds 1 mask that .* did not write, such as 00001\.png, .* another output"):
        track_file(trained, tmp_path / "clip.mp4", {1: FIRST}, tmp_path / "out", save=["masks"], progress=False)
    assert annotated.read_bytes() == before
    assert list(annotated.parent.iterdir()) == [annotated]


def test_an_interruption_leaves_what_is_finished(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mp4", clip.frames)
    frames = ClipFrames(tmp_path / "clip.mp4")

    class Interrupted(ClipFrames):
        def __iter__(self) -> Any:
            for t, frame in enumerate(frames):
                if t == 3:
                    signal.raise_signal(signal.SIGINT)  # Ctrl-C while frame 3 is being read
                yield frame

    save_label_map(np.zeros((96, 96), np.uint8), tmp_path / "out" / "masks" / "00007.png")
    with pytest.raises(KeyboardInterrupt, match=r"4 of 10 frames are in .*masks and .*overlay\.mp4 and .*rle"):
        track_file(
            trained,
            tmp_path / "clip.mp4",
            {1: FIRST},
            tmp_path / "out",
            frames=Interrupted(frames.path),
            save=["masks", "overlay", "rle"],
            progress=False,
        )
    whole = dict(track_frames(trained, frames, {1: FIRST}))
    assert len(json.loads((tmp_path / "out" / "rle.json").read_text())["images"]) == 4
    # Of an earlier run, too, nothing is left there.
    written = sorted((tmp_path / "out" / "masks").iterdir())
    assert [path.name for path in written] == [f"{t:05d}.png" for t in range(4)]
    for t, path in enumerate(written):
        np.testing.assert_array_equal(read_ids(path), whole[t])
    assert len(list(read_frames(tmp_path / "out" / "overlay.mp4"))) == 4


def test_a_frame_that_cannot_be_read_leaves_what_is_finished(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    forms: list[SavedAs] = ["masks", "overlay", "rle"]
    frames, out = tmp_path / "frames", tmp_path / "out"
    frames.mkdir()
    for t in range(5):
        Image.fromarray(clip.frames[t]).save(frames / f"{t}.png")
    track_file(trained, frames, {1: FIRST}, out, save=forms, progress=False)
    (frames / "3.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"3\.png cannot be read.*; 3 of 5 frames are in .*masks and .*overlay.* and .*rle"
    ):
        track_file(trained, frames, {1: FIRST}, out, save=forms, progress=False)
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["0.png", "1.png", "2.png"]
    assert len(json.loads((out / "rle.json").read_text())["images"]) == 3
    assert len(list(read_frames(out / "overlay.mp4"))) == 3


@pytest.mark.parametrize("kind", [RuntimeError, CheckpointError])
def test_an_error_of_the_model_leaves_what_is_finished(clip: Sequence, tmp_path: Path, kind: type[Exception]) -> None:
    from sam2.sam2_video_predictor import SAM2VideoPredictor

    model: Any = load_embedded(SAM2VideoPredictor)
    write_video(tmp_path / "clip.mp4", clip.frames[:5])
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # on the fourth frame: the first has no memory to attend to
            raise kind("out of memory")

    model.memory_attention.register_forward_pre_hook(fail)
    out = tmp_path / "out"
    forms: list[SavedAs] = ["masks", "overlay", "rle"]
    said = "out of memory; 3 of 5 frames are in" if issubclass(kind, QSAM2Error) else "out of memory"
    with pytest.raises(Exception, match=said) as raised:
        track_file(model, tmp_path / "clip.mp4", {1: FIRST}, out, save=forms, progress=False)
    assert raised.type in (kind, QSAM2Error)
    assert len(list((out / "masks").iterdir())) == 3
    assert len(json.loads((out / "rle.json").read_text())["images"]) == 3
    assert len(list(read_frames(out / "overlay.mp4"))) == 3


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ({}, {}, "needs a click, a box or a mask for at least one object"),
        ({3: {}}, {}, "needs a click, a box or a mask"),
        ({2: {1: None}}, {}, "needs a click, a box or a mask"),
        ({0: FIRST}, {}, "0 is no object id; object ids are 1 to 254"),
        ({-1: {1: FIRST}}, {}, "frame -1 cannot have prompts"),
        ({10: {1: FIRST}}, {}, "frame 10 is beyond the clip, which has 10 frames, 0 to 9"),
        ({0: {1: None}, 2: {1: FIRST}}, {}, "frame 0, object 1: it cannot be removed"),
        ({0: {1: FIRST}, 2: {1: None}}, {"direction": "backward"}, "frame 2, object 1: it cannot be removed"),
        ({1: ObjectPrompt(box=(1, 2, 300, 20))}, {}, "frame 0, object 1: box has .* outside"),
        ({1: ObjectPrompt()}, {}, "frame 0, object 1: there is no prompt"),
        ({1: ObjectPrompt(mask=np.ones((9, 9), bool))}, {}, r"frame 0, object 1: mask has shape \[9, 9\]"),
        ({1: ObjectPrompt([(1, 2, 1)], mask=np.ones((96, 96), bool))}, {}, "object 1 has a mask and another prompt"),
        ({1: FIRST}, {"direction": "sideways"}, "direction must be one of forward, backward, both"),
    ],
)
def test_what_cannot_be_tracked(trained: Any, clip: Sequence, prompts: Any, arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        next(track_frames(trained, clip.frames, prompts, **arguments))


def test_iterators_go_forward_only(trained: Any, clip: Sequence) -> None:
    with pytest.raises(DataError, match="reads frames again, which an iterator cannot do: give a list"):
        next(track_frames(trained, iter(clip.frames), {1: FIRST}, direction="both"))
    with pytest.raises(DataError, match="at least one frame"):
        next(track_frames(trained, iter(()), {1: FIRST}))
    with pytest.raises(DataError, match="prompts for frame 3, but the clip ended after 2 frames"):
        list(track_frames(trained, iter(clip.frames[:2]), {0: {1: FIRST}, 3: {1: SECOND}}))


def test_an_error_leaves_what_is_finished(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    """Also of those that were stored on the way back, and are not whole."""
    write_video(tmp_path / "clip.mp4", clip.frames)

    class Damaged(ClipFrames):
        def __iter__(self) -> Any:
            yield from self._of(2)
            raise DataError("frame 2 is damaged")

        def _of(self, count: int) -> Any:
            return iter(clip.frames[:count])

    frames, out = Damaged(tmp_path / "clip.mp4"), tmp_path / "out"
    with pytest.raises(DataError, match="frame 2 is damaged"):
        track_file(
            trained, frames.path, {4: {1: FIRST}}, out, frames=frames, direction="both", save=["masks"], progress=False
        )
    assert sorted(path.name for path in (out / "masks").iterdir()) == ["00000.png", "00001.png"]


def test_frames_are_not_replaced_by_their_masks(trained: Any, clip: Sequence, tmp_path: Path) -> None:
    folder = tmp_path / "masks"
    folder.mkdir()
    for t, frame in enumerate(clip.frames[:3]):
        Image.fromarray(frame).save(folder / f"{t:05d}.png")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(DataError, match="is read, and the results would replace it"):
        track_file(trained, folder, {1: FIRST}, tmp_path, progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
