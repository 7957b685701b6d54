"""Chunk by chunk: the same frames as a stream gives, and a chunk that is taken back leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from streamavatar.engine import Pipeline, Session, StepSession
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER
from streamavatar.models.avatar import AvatarModel

MakeModel = Callable[..., AvatarModel]
CHUNK, AHEAD = 12, AFTER


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(1)


def picture(model: AvatarModel) -> NDArray[np.uint8]:
    g = model.config.geometry
    return np.random.default_rng(0).integers(0, 255, (g.height, g.width, 3), np.uint8)


def speech(seed: int, ticks: int, tick: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.1, ticks * tick).astype(np.float32)


def windows(agent: NDArray[np.float32], user: NDArray[np.float32], rates: tuple[int, int]) -> Iterator[tuple]:
    """Agent's chunk with its look-ahead, and the user's chunk."""
    for chunk in range(len(user) // (CHUNK * rates[1])):
        first = chunk * CHUNK
        yield agent[first * rates[0] : (first + CHUNK + AHEAD) * rates[0]], user[first * rates[1] :][: CHUNK * rates[1]]


def test_the_frames_of_a_stream(make_model: MakeModel, pipeline: Pipeline) -> None:
    """At the feature rate and with a silent user, a stream and steps are bitwise the same."""
    model = make_model()
    agent = speech(1, 6 * CHUNK + AHEAD, 640)
    user = np.zeros(6 * CHUNK * 640, np.float32)
    stream = Session(model, pipeline, picture(model), lanes=["agent"], seed=3)
    expected = np.concatenate([output.frames for output in stream.push(agent=agent)])
    session = StepSession(model, pipeline, picture(model), seed=3)
    got = np.concatenate([session.step(a, u) for a, u in windows(agent, user, (640, 640))])
    assert np.array_equal(got, expected[: len(got)])
    assert session.chunks == 6


@pytest.mark.parametrize("sink", ["none", "reference", "first_chunk"])
def test_a_chunk_taken_back_leaves_no_trace(sink: str, make_model: MakeModel, pipeline: Pipeline) -> None:
    """At every chunk, the wrap of the ring included, and twice in a row: bitwise what a session without it gives."""
    model = make_model(context={"sink": sink})
    agent, user = speech(1, 7 * CHUNK + AHEAD, 960), speech(2, 7 * CHUNK, 640)
    given = list(windows(agent, user, (960, 640)))
    rates = {"agent_rate": 24000, "user_rate": 16000, "seed": 3}
    plain = StepSession(model, pipeline, picture(model), **rates)
    expected = [plain.step(a, u) for a, u in given]
    session = StepSession(model, pipeline, picture(model), **rates)
    for index, (a, u) in enumerate(given):
        for wrong in range(2):
            other = session.step(speech(10 + wrong, CHUNK + AHEAD, 960), speech(20 + wrong, CHUNK, 640))
            assert not np.array_equal(other, expected[index])
            session.rollback()
        assert session.chunks == index
        assert np.array_equal(session.step(a, u), expected[index]), index


def test_look_ahead_is_not_the_past(make_model: MakeModel, pipeline: Pipeline) -> None:
    """What is said differs from what was expected: only the chunk that expected it can tell."""
    model = make_model()
    agent, user = speech(1, 5 * CHUNK + AHEAD, 640), speech(2, 5 * CHUNK, 640)
    given = list(windows(agent, user, (640, 640)))
    plain, misled = (StepSession(model, pipeline, picture(model)) for _ in range(2))
    first = plain.step(*given[0])
    wrong = given[0][0].copy()
    wrong[CHUNK * 640 :] = 0
    assert not np.array_equal(misled.step(wrong, given[0][1]), first)
    misled.rollback()
    assert np.array_equal(misled.step(*given[0]), first)


def test_bad_calls_change_nothing(make_model: MakeModel, pipeline: Pipeline) -> None:
    model = make_model()
    agent, user = speech(1, CHUNK + AHEAD, 640), speech(2, CHUNK, 640)
    expected = StepSession(model, pipeline, picture(model)).step(agent, user)
    session = StepSession(model, pipeline, picture(model))
    with pytest.raises(ValueError, match="no chunk"):
        session.rollback()
    with pytest.raises(UserError, match="has 8960 samples, not 8959"):
        session.begin(agent[1:], user)
    with pytest.raises(UserError, match="finite"):
        session.begin(agent, np.full_like(user, np.nan))
    assert np.array_equal(session.step(agent, user), expected)
    session.rollback()
    with pytest.raises(ValueError, match="no chunk"):
        session.rollback()
    with pytest.raises(UserError, match="whole number"):
        StepSession(model, pipeline, picture(model), agent_rate=11025 + 1)
