"""Pictures of puppets, their truth, and reading them back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2", reason="OpenCV (extra `synth`) is not installed")

from streamavatar.synth.clips import clip_stream, make_clip, neutral_frames  # noqa: E402
from streamavatar.synth.dialogue import tone_dialogue  # noqa: E402
from streamavatar.synth.measure import eye_opening, mouth_opening  # noqa: E402
from streamavatar.synth.performance import neutral  # noqa: E402
from streamavatar.synth.puppet import PuppetIdentity, PuppetRenderer  # noqa: E402


def test_identities_differ_and_repeat() -> None:
    still = neutral()
    pictures = [PuppetRenderer(PuppetIdentity.random(s), 64).render(still, 0) for s in range(6)]
    for index, picture in enumerate(pictures):
        assert picture.shape == (64, 64, 3)
        assert picture.dtype == np.uint8
        for other in pictures[:index]:
            assert np.abs(picture.astype(int) - other).mean() > 8
    np.testing.assert_array_equal(pictures[2], PuppetRenderer(PuppetIdentity.random(2), 64).render(still, 0))
    assert PuppetIdentity.random(2) == PuppetIdentity.random(2)


@pytest.mark.parametrize("size", [128, 192, 256])
def test_any_size_shows_the_same_person(size: int) -> None:
    who, still = PuppetIdentity.random(4), neutral()
    small = PuppetRenderer(who, 128).render(still, 0)
    large = cv2.resize(PuppetRenderer(who, size).render(still, 0), (128, 128), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - large).mean() < 3


@pytest.mark.parametrize("seed", range(0, 40, 5))
def test_every_motion_shows_where_the_truth_says(seed: int) -> None:
    renderer, still = PuppetRenderer(PuppetIdentity.random(seed)), neutral()
    base = renderer.render(still, 0).astype(int)
    marks = renderer.landmarks(still)
    one = np.ones(1, np.float32)
    cases = {
        "mouth": replace(still, mouth_open=one),
        "eye_left": replace(still, blink=one),
        "eye_right": replace(still, blink=one),
        "hand": replace(still, hand=np.array([[0.9, 0, 0]], np.float32)),
    }
    for name, moved in cases.items():
        picture = renderer.render(moved, 0).astype(int)
        box = marks[name] if name != "hand" else renderer.landmarks(moved)["hand"]
        x0, y0, x1, y1 = box[0].round().astype(int)
        change = np.abs(picture - base).mean(axis=2)
        assert change[y0:y1, x0:x1].mean() > 6, name
        assert change[y0:y1, x0:x1].mean() > 8 * change.mean() / 4, name
    turned = renderer.landmarks(replace(still, head=np.array([[4, 5, 3]], np.float32)))
    assert (turned["mouth_center"] - marks["mouth_center"])[0, 1] > 2
    assert marks["hand"].max() == 0
    assert marks["mouth_gap"].max() == 0


def _spoiled(frames: np.ndarray) -> np.ndarray:
    """Slight blur and strong JPEG, as generated video may look."""
    out = []
    for frame in frames:
        soft = cv2.GaussianBlur(frame, (0, 0), 0.8)
        out.append(cv2.imdecode(cv2.imencode(".jpg", soft, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR))
    return np.stack(out)


@pytest.mark.parametrize("who", [0, 7, 11, 21, 117, 168])
def test_openings_are_read_back_from_pixels(who: int) -> None:
    clip = make_clip(3, 150, identity_seed=who, dialogue=tone_dialogue(21, 14.0), start=25)
    renderer = PuppetRenderer(clip.identity)
    still = neutral()
    reference, box = renderer.render(still, 0), renderer.landmarks(still)["mouth"][0]
    truth = clip.performance.mouth_open
    assert (truth > 0.1).mean() > 0.3

    def agreement(value: np.ndarray, with_truth: np.ndarray) -> float:
        return float(np.corrcoef(value, with_truth)[0, 1])

    assert agreement(mouth_opening(clip.frames, clip.landmarks["mouth"]), truth) > 0.9
    for frames in (clip.frames, _spoiled(clip.frames)):
        value = mouth_opening(frames, clip.landmarks["mouth"], reference=reference, reference_box=box)
        assert agreement(value, truth) > 0.9
        assert value[truth == 0].mean() < 0.08 < value[truth > 0.5].mean()
        eyes = [eye_opening(frames, clip.landmarks[name]) for name in ("eye_left", "eye_right")]
        assert agreement(np.mean(eyes, axis=0), 1 - clip.performance.blink) > 0.8


def test_clips_repeat_and_fit_their_audio() -> None:
    talk = tone_dialogue(2, 12.0)
    one, two = (make_clip(9, 20, 64, dialogue=talk) for _ in range(2))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert one.frames.shape == (20, 64, 64, 3)
    assert one.agent.shape == one.user.shape == (20 * 640,)
    assert one.agent_before.shape == one.user_before.shape == (16_000,)
    first = one.start * 640
    np.testing.assert_array_equal(one.user, talk.user.samples[first : first + 20 * 640])
    early = make_clip(9, 20, 64, dialogue=talk, start=5)
    assert not early.agent_before[: 16_000 - 5 * 640].any()
    np.testing.assert_array_equal(early.agent_before[-5 * 640 :], talk.agent.samples[: 5 * 640])


def test_streams_repeat_and_often_begin_neutral() -> None:
    def take(seed: int) -> list:
        stream = clip_stream(seed, 9, 32, tones=True)
        return [next(stream) for _ in range(32)]

    clips, again = take(1), take(1)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(clips, again, strict=True))
    neutral_first = np.mean([neutral_frames(c.performance)[0] for c in clips])
    assert 0.4 < neutral_first < 0.9
    assert len({c.identity_seed for c in clips}) == 32
