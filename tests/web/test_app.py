"""The routes: what models answer is what the predictors find, and what is wrong is refused."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsam2_ao import load_embedded, load_qsam2
from qsam2_ao.data.decoding import pixel_limit
from qsam2_ao.data.pictures import read_ids
from qsam2_ao.data.procedural import generate_sequence
from qsam2_ao.errors import DataError
from qsam2_ao.segmentation import ObjectPrompt, segment_image, track_frames
from qsam2_ao.stage import set_stage, stage_of
from qsam2_ao.web import clips
from qsam2_ao.web.answers import Models
from qsam2_ao.web.clips import ClipStore
from qsam2_ao.web.serve import hosts_of

CLICK = {"object": 1, "points": [[40, 50]], "labels": [1]}


def opened(client, content: bytes, name: str = "mine.png") -> dict:
    response = client.post("/api/clips", params={"name": name}, content=content)
    assert response.status_code == 200, response.text
    return response.json()


def tracked(client, clip: dict, prompts: list[dict]) -> dict:
    url = f"/api/clips/{clip['id']}/track"
    response = client.post(url, content=json.dumps({"prompts": prompts}))
    assert response.status_code == 200, response.text
    for _ in range(600):
        found = client.get(url).json()
        if found["error"] or found["done"] == found["total"]:
            return found
        time.sleep(0.05)
    raise AssertionError("it was not tracked in half a minute")


def ids_of(overlay: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(overlay)))[..., 3] > 0


def test_a_picture_is_segmented_by_every_model(client, png: bytes, models):
    about = client.get("/api/models").json()
    assert [model["label"] for model in about["models"]] == ["embedded", "random-w4a8"]
    clip = opened(client, png, "../../etc/mine.png")
    assert (clip["name"], clip["width"], clip["height"], clip["picture"]) == ("mine.png", 96, 96, True)
    answer = client.post(f"/api/clips/{clip['id']}/segment", content=json.dumps({"frame": 0, "prompts": [CLICK]}))
    one, other = answer.json()["answers"]
    picture = Image.open(io.BytesIO(png))
    logits, scores = segment_image(load_embedded(), picture, {1: ObjectPrompt([(40, 50, 1)])})
    assert one["objects"] == [
        {"id": 1, "score": pytest.approx(scores[1]), "iou": 1, "pixels": int((logits[1] > 0).sum())}
    ]
    assert 0 <= other["objects"][0]["iou"] <= 1
    overlay = base64.b64decode(one["overlay"].partition(",")[2])
    np.testing.assert_array_equal(ids_of(overlay), logits[1] > 0)

    url = f"/api/clips/{clip['id']}/download/0"
    with zipfile.ZipFile(io.BytesIO(client.get(f"{url}/masks").content)) as archive:
        mask = np.asarray(Image.open(archive.open("00000.png")))
    np.testing.assert_array_equal(mask == 1, logits[1] > 0)
    rle = client.get(f"{url}/rle").json()
    assert rle["annotations"][0]["area"] == int((logits[1] > 0).sum())
    assert Image.open(io.BytesIO(client.get(f"{url}/overlay").content)).size == (96, 96)


def test_downloads_are_of_the_last_question(png: bytes):
    clip = ClipStore().open_file("a.png", lambda path: path.write_bytes(png))
    for asked in (2, 1):  # the earlier one is answered later
        clip.keep_masks(asked, [np.full((96, 96), asked, np.uint8)])
    assert read_ids(clip.mask_path(0, 0)).max() == 2


def test_a_clip_is_tracked_and_corrected_on_a_later_frame(client):
    clip = client.post("/api/samples/0").json()
    assert (clip["frames"], clip["picture"]) == (24, False)
    frames = generate_sequence("test", 0, size=(192, 192), num_frames=24).frames
    prompts = [{"frame": 20, **CLICK}, {"frame": 22, "object": 1, "box": [10, 10, 120, 150]}]
    found = tracked(client, clip, prompts)
    assert found["error"] is None
    assert sorted(map(int, found["frames"])) == [20, 21, 22, 23]
    assert all(row[0]["iou"] == 1 and row[0]["ms"] > 0 for row in found["frames"].values())
    schedule = {20: {1: ObjectPrompt([(40, 50, 1)])}, 22: {1: ObjectPrompt(box=(10, 10, 120, 150))}}
    expected = dict(track_frames(load_embedded(), list(frames), schedule))
    for frame in (21, 23):
        mask = client.get(f"/api/clips/{clip['id']}/masks/0/{frame}")
        np.testing.assert_array_equal(ids_of(mask.content), expected[frame] == 1)
    assert client.get(f"/api/clips/{clip['id']}/masks/0/3").status_code == 404
    video = client.get(f"/api/clips/{clip['id']}/download/1/overlay")
    assert video.content[4:8] == b"ftyp"


def animation(frames: int) -> bytes:
    first, *others = map(Image.fromarray, generate_sequence("test", 0, num_frames=frames).frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others)
    return buffer.getvalue()


def test_errors_name_the_users_file_and_no_folder_of_the_server(models):
    clip = ClipStore().open_file("mine.gif", lambda path: path.write_bytes(animation(6)))
    clip.source.write_bytes(b"GIF89a")
    tracking = models.start_tracking(clip, {0: {1: ObjectPrompt([(40, 50, 1)])}})
    models.wait()
    assert "mine.gif" in tracking.error
    assert str(clip.folder) not in tracking.error
    with pytest.raises(DataError, match=r"^mine\.gif"):
        clip.frame(5)


def test_the_size_limit_holds_for_what_is_opened_and_for_what_is_tracked(models, monkeypatch: pytest.MonkeyPatch):
    testclient = pytest.importorskip("starlette.testclient")
    from qsam2_ao.web.app import make_app

    gif = animation(3)
    with pixel_limit(96 * 96 - 1):
        small = make_app(models, hosts=["testserver"])
    with testclient.TestClient(small) as client:
        response = client.post("/api/clips", params={"name": "mine.gif"}, content=gif)
    assert (response.status_code, "give --max-pixels 9216" in response.json()["error"]) == (400, True)
    with pixel_limit(96 * 96):
        app = make_app(models, hosts=["testserver"])
    monkeypatch.setenv("QSAM2_MAX_PIXELS", "10")  # which the limit goes before, in threads too
    with testclient.TestClient(app) as client:
        assert tracked(client, opened(client, gif, "mine.gif"), [{"frame": 0, **CLICK}])["error"] is None


def test_of_a_long_clip_it_is_said_how_much_is_open(models):
    testclient = pytest.importorskip("starlette.testclient")
    from qsam2_ao.web.app import make_app

    with testclient.TestClient(make_app(models, max_frames=2, hosts=["testserver"])) as client:
        clip = opened(client, animation(3), "mine.gif")
    assert (clip["frames"], clip["stored_frames"]) == (2, 3)


def test_warming_up_changes_no_answer(models, png: bytes):
    picture, prompts = np.asarray(Image.open(io.BytesIO(png))), {1: ObjectPrompt([(40, 50, 1)])}
    _, before = models.segment(picture, prompts)
    models.warm_up()
    _, after = models.segment(picture, prompts)
    np.testing.assert_array_equal(before, after)


def test_a_model_that_cannot_track_segments_pictures(models, packed_file: Path, png: bytes):
    model = load_qsam2(packed_file)
    set_stage(model, replace(stage_of(model), images_only=True))
    one = Models([replace(models.entrants[1], model=model)])
    one.warm_up()
    answers, _ = one.segment(np.asarray(Image.open(io.BytesIO(png))), {1: ObjectPrompt([(40, 50, 1)])})
    assert answers[0]["objects"]


def test_masks_of_an_earlier_tracking_are_not_taken_along(client):
    clip = client.post("/api/samples/0").json()
    for begin in (19, 21):
        tracked(client, clip, [{"frame": begin, **CLICK}])
    with zipfile.ZipFile(io.BytesIO(client.get(f"/api/clips/{clip['id']}/download/0/masks").content)) as archive:
        assert archive.namelist() == ["00021.png", "00022.png", "00023.png"]


def test_two_users_at_once_do_not_mix(client, png: bytes):
    clips = [opened(client, png), opened(client, png)]
    answers: dict[int, list[dict]] = {0: [], 1: []}

    def ask(user: int) -> None:
        point = [[20, 20], [60, 60]][user]
        body = json.dumps({"prompts": [{"object": user + 1, "points": [point]}]})
        for _ in range(4):
            answers[user] += client.post(f"/api/clips/{clips[user]['id']}/segment", content=body).json()["answers"][:1]

    threads = [threading.Thread(target=ask, args=(user,)) for user in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for user in (0, 1):
        assert len(answers[user]) == 4
        assert len({answer["overlay"] for answer in answers[user]}) == 1
        assert answers[user][0]["objects"][0]["id"] == user + 1
    assert answers[0][0]["overlay"] != answers[1][0]["overlay"]


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("a.exe", b"MZ", 400, "has no ending of a picture or video"),
        ("a.png", b"no picture", 400, "a.png cannot be read as a picture"),
        ("a.mp4", b"no video", 400, "a.mp4 cannot be decoded as a video"),
        ("", b"", 400, "has no ending"),
        ("a.png", bytes(200_001), 413, "larger than"),
    ],
)
def test_bad_files(client, name: str, content: bytes, status: int, message: str):
    response = client.post("/api/clips", params={"name": name}, content=content)
    assert (response.status_code, message in response.json()["error"]) == (status, True), response.text
    assert "qsam2-web" not in response.text, "it tells where the server keeps files"


def test_a_body_without_a_length_is_cut_off(client):
    def chunks():
        for _ in range(30):
            yield bytes(10_000)

    assert client.post("/api/clips", params={"name": "a.png"}, content=chunks()).status_code == 413


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{", "wanted JSON"),
        ("[]", "wanted JSON"),
        ('{"prompts": 5}', "wanted a list of prompts"),
        ('{"prompts": [{"object": 1, "mask": "/etc/passwd"}]}', "a mask would be a file"),
        ('{"prompts": [{"object": 1, "points": [[4000, 1]]}]}', "outside"),
        ('{"prompts": [{"object": 1, "remove": true}]}', "nothing to segment"),
        ('{"frame": 7, "prompts": [{"points": [[1, 1]]}]}', "no frame 7"),
        ('{"frame": "x", "prompts": [{"points": [[1, 1]]}]}', "frame must be a number"),
    ],
)
def test_bad_questions(client, png: bytes, body: str, message: str):
    response = client.post(f"/api/clips/{opened(client, png)['id']}/segment", content=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e%2fapp.py",
        "/static/index.html",
        "/api/clips/..%2f..%2f..%2fetc/frames/0",
        "/api/clips/nobodys/frames/0",
        "/api/clips/{id}/masks/0/0",
        "/api/clips/{id}/masks/9/0",
        "/api/clips/{id}/download/0/..%2fupload.png",
        "/api/clips/{id}/download/9/masks",
        "/api/clips/{id}/frames/-1",
        "/api/clips/{id}/track",
    ],
)
def test_nothing_else_is_served(client, png: bytes, path: str):
    assert client.get(path.format(id=opened(client, png)["id"])).status_code == 404


def test_other_sites_are_refused(client, png: bytes):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    response = client.post(
        "/api/clips", params={"name": "a.png"}, content=png, headers={"origin": "http://evil.example"}
    )
    assert response.status_code == 403
    broken = client.post("/api/clips", params={"name": "a.png"}, content=png, headers={"origin": "http://[x"})
    assert broken.status_code == 403
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "192.168.0.7"])
def test_the_address_that_people_are_told_is_answered(models, host: str):
    testclient = pytest.importorskip("starlette.testclient")
    from qsam2_ao.web.app import make_app

    own, hosts = hosts_of(host)
    client = testclient.TestClient(make_app(models, hosts=hosts), base_url=f"http://{own}:8000")
    assert client.get("/").status_code == 200
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400


def test_what_is_closed_or_left_is_forgotten(client, png: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "MOST_CLIPS", 2)
    first, second, third = (opened(client, png)["id"] for _ in range(3))
    status = [client.get(f"/api/clips/{clip}/frames/0").status_code for clip in (first, second, third)]
    assert status == [404, 200, 200]
    assert client.delete(f"/api/clips/{third}").status_code == 204
    assert client.get(f"/api/clips/{third}/frames/0").status_code == 404


def test_large_pictures_make_room_for_one_another(client, png: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "MOST_BYTES", 2 * 96 * 96 * 3)
    opened_ids = [opened(client, png)["id"] for _ in range(3)]
    assert [client.get(f"/api/clips/{clip}/frames/0").status_code for clip in opened_ids] == [404, 200, 200]


def test_the_servers_folder_is_removed(png: bytes):
    store = ClipStore()
    store.open_file("a.png", lambda path: path.write_bytes(png))
    assert list(store.root.rglob("upload.png"))
    store.close_all()
    assert not store.root.exists()
