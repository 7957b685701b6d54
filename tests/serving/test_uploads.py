"""What clients send to the gateway as files: recordings, pictures, and lanes for offline videos."""

from __future__ import annotations

import base64
import io
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra live")
pytest.importorskip("dlib", reason="needs the extra live")

from fastapi.testclient import TestClient
from gateway_app import Open, problem, start

from streamavatar import bundled
from streamavatar.media.face import find_face, portrait_framing

# recordings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"not audio at all", bytes(1000), b"RIFF" + bytes(100)])
def test_bad_recordings(data: bytes, open_app: Open) -> None:
    client = open_app(audio_bytes=2000)
    path, key = start(client)
    answer = client.post(f"{path}/speech", headers=key, content=data)
    assert problem(answer) == (422, "bad_audio")
    assert "/tmp" not in answer.text
    assert problem(client.post(f"{path}/speech", headers=key, content=bytes(2001))) == (413, "too_large")


# pictures --------------------------------------------------------------------------------------------


def png(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def upload(client: TestClient, data: bytes, kind: str = "image/png", **query: str) -> Any:
    return client.post("/v1/avatars", params=query, content=data, headers={"Content-Type": kind})


def portrait_with_a_face() -> np.ndarray:
    """A bundled portrait, [256, 256, 3], in which the detector finds a face (a drawing is none to every detector)."""
    pictures = (Image.open(p.path).convert("RGB").resize((256, 256)) for p in bundled.portraits().values())
    return next(pixels for pixels in map(np.asarray, pictures) if find_face(pixels))


NOISE = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)


def test_an_own_face(open_app: Open) -> None:
    client = open_app(face_count=2)
    wide = np.full((300, 700, 3), 180, np.uint8)
    wide[20:276, 400:656] = portrait_with_a_face()
    made = upload(client, png(wide, "JPEG", quality=95), "image/jpeg")
    assert made.status_code == 201, made.text
    avatar = made.json()
    assert avatar["own"]
    kept = client.keeper.engine.faces
    assert kept == {avatar["id"]}  # encoded before a session asks for it
    shown = np.asarray(Image.open(io.BytesIO(client.get(avatar["picture"]).content)))
    assert shown.shape == (512, 512, 3)
    x, y, width, height = find_face(shown)
    framing = portrait_framing()
    assert width == pytest.approx(framing.share * 512, abs=60)  # framed as the bundled ones are
    assert (x + width / 2, y + height / 2) == pytest.approx((256, framing.middle * 512), abs=40)
    path, key = start(client, avatar=avatar["id"])
    assert client.get(path, headers=key).status_code == 200
    assert all(not shown["own"] for shown in client.get("/v1/avatars").json()["avatars"])
    assert upload(client, png(NOISE), crop="centre").status_code == 201
    assert problem(upload(client, png(NOISE), crop="centre")) == (507, "full")
    assert client.delete(f"/v1/avatars/{avatar['id']}").status_code == 204
    assert avatar["id"] not in kept
    assert problem(client.get(avatar["picture"])) == (404, "no_avatar")
    assert problem(client.delete(f"/v1/avatars/{bundled.DEFAULT_AVATAR}")) == (403, "forbidden")


def test_uploads_have_limits(open_app: Open) -> None:
    client = open_app(faces_per_client=1, face_keep_seconds=0.5)
    assert upload(client, png(NOISE), crop="centre").status_code == 201
    assert problem(upload(client, png(NOISE), crop="centre")) == (507, "full")
    kept, end = client.keeper.engine.faces, time.monotonic() + 5
    while kept and time.monotonic() < end:  # nobody asks for it
        time.sleep(0.1)
    assert not kept
    assert upload(client, png(NOISE), crop="centre").status_code == 201


def test_pictures_that_are_refused(open_app: Open) -> None:
    client = open_app(face_bytes=300_000)
    assert problem(upload(client, png(NOISE))) == (422, "no_face")
    assert problem(upload(client, b"GIF89a" + bytes(50), "image/gif")) == (415, "unsupported_type")
    assert problem(upload(client, b"hello", "image/png")) == (415, "unsupported_type")
    assert problem(upload(client, png(NOISE), "text/html")) == (415, "unsupported_type")
    assert problem(upload(client, png(NOISE)[:9000])) == (422, "damaged")
    assert problem(upload(client, png(NOISE[:40, :40]))) == (422, "too_small")
    bomb = png(np.zeros((8000, 8000), np.uint8))
    assert len(bomb) < 300_000
    assert problem(upload(client, bomb)) == (422, "too_large")
    assert problem(upload(client, bytes(300_001))) == (413, "too_large")


ASSETS = Path(__file__).resolve().parents[2] / ".." / "shared" / "assets" / "portraits"


@pytest.mark.skipif(not ASSETS.is_dir(), reason="the folder of real portraits is not here")
def test_faces_are_found_on_photographs() -> None:
    pictures = sorted(ASSETS.glob("halfbody_*"))
    found = [find_face(np.asarray(Image.open(path).convert("RGB"))) for path in pictures]
    assert len(pictures) >= 10
    assert all(box is not None and 100 < box[2] < 350 for box in found)


# videos ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_offline_videos(open_app: Open) -> None:
    client = open_app(video_seconds=5.0)
    job = client.post("/v1/videos", json={"avatar": bundled.DEFAULT_AVATAR, "seconds": 0.5})
    assert job.status_code == 202
    name = job.json()["id"]
    assert problem(client.get(f"/v1/videos/{name}/file")) == (409, "not_ready")
    assert problem(client.post("/v1/videos", json={"seconds": 1})) == (429, "busy")
    end = time.monotonic() + 300  # the worker has the lowest priority
    while (state := client.get(f"/v1/videos/{name}").json())["status"] == "working" and time.monotonic() < end:
        time.sleep(0.2)
    assert (state["status"], state["progress"]) == ("done", 1.0), state
    with av.open(io.BytesIO(client.get(state["file"]).content)) as video:
        assert video.streams.video[0].frames == 13
        assert video.metadata["comment"].startswith("AI-generated")


def test_videos_that_are_refused(open_app: Open) -> None:
    client = open_app(sessions=1, video_seconds=2.0)

    def answer(**wish: Any) -> tuple[int, str]:
        return problem(client.post("/v1/videos", json=wish))

    long = base64.b64encode(bundled.conversation()[0].read_bytes()).decode()
    assert answer() == (422, "invalid")
    assert answer(seconds=3) == (422, "too_long")
    assert answer(agent_audio="%") == (422, "invalid")
    assert answer(agent_audio=base64.b64encode(b"noise").decode()) == (422, "bad_audio")
    assert answer(user_audio=long) == (422, "too_long")
    assert answer(seconds=1, avatar="nobody") == (404, "no_avatar")
    assert problem(client.get("/v1/videos/nobody")) == (404, "no_video")
    start(client)
    assert answer(seconds=1) == (503, "no_room")
