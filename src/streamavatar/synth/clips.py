"""Training examples: frames, the two lanes that cover exactly these frames, and all truth.

A clip is a function of its seed alone. Many clips are cut from one dialogue, since speaking costs more than
cutting; half of them begin at a quiet point, because at run time the reference picture is neutral.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.synth.dialogue import Dialogue, make_dialogue, tone_dialogue
from streamavatar.synth.performance import FPS, FRAME_SAMPLES, Performance, perform
from streamavatar.synth.puppet import PuppetIdentity, PuppetRenderer
from streamavatar.synth.speech import SAMPLE_RATE, Samples

BEFORE = SAMPLE_RATE  # samples of history that come with a clip
_STREAM_SECONDS = 45.0
_PER_DIALOGUE = 16


@dataclass(frozen=True)
class Clip:
    """One example.

    Attributes:
        frames: uint8 RGB [F,H,W,3].
        agent, user: float32 16 kHz [F*640], sample 0 at the start of frame 0.
        agent_before, user_before: the second before that [16000], zeros where there is none.
        performance: motion truth of the frames.
        landmarks: truth in pixels, see `PuppetRenderer.landmarks`.
        identity: who it is.
        seed, identity_seed, start: where it came from; `start` is its first frame in the dialogue.
    """

    frames: NDArray[np.uint8]
    agent: Samples
    user: Samples
    agent_before: Samples
    user_before: Samples
    performance: Performance
    landmarks: dict[str, NDArray[np.float32]]
    identity: PuppetIdentity
    seed: int
    identity_seed: int
    start: int


def make_clip(
    seed: int, frames: int = 85, size: int = 128, identity_seed: int | None = None,
    dialogue: Dialogue | None = None, start: int | None = None, *, renderer: PuppetRenderer | None = None,
) -> Clip:  # fmt: skip
    """One clip, deterministic by its arguments.

    Args:
        seed: chooses dialogue, motion, identity and start where these are not given.
        frames: length at 25 fps.
        size: width and height in pixels.
        identity_seed: who; from `seed` if None.
        dialogue: what is said; a new spoken one (flite) if None.
        start: first frame on the dialogue's clock; if None, in half of the seeds a quiet point.
        renderer: a ready renderer of this identity and size, to save painting its layers again.

    Raises:
        UserError: a dialogue has to be spoken and flite is missing.
    """
    rng = np.random.default_rng((seed, 0xC11))
    drawn = int(rng.integers(2**31))
    identity_seed = drawn if identity_seed is None else identity_seed
    if dialogue is None:
        dialogue = make_dialogue(seed, frames / FPS + 5.0)
    total = max(frames, int(dialogue.seconds * FPS))
    whole = perform(dialogue, seed, max(total, (start or 0) + frames))
    if start is None:
        start = choose_start(whole, frames, rng)
    if renderer is None:
        renderer = PuppetRenderer(PuppetIdentity.random(identity_seed), size)
    elif renderer.size != size or renderer.identity.seed != identity_seed:
        raise ValueError("the renderer is of another identity or size than the clip")
    return _cut(seed, identity_seed, dialogue, whole, start, frames, renderer)


def _cut(
    seed: int, identity_seed: int, dialogue: Dialogue, whole: Performance, start: int, frames: int,
    renderer: PuppetRenderer,
) -> Clip:  # fmt: skip
    performance = whole.cut(start, frames)
    first, count = start * FRAME_SAMPLES, frames * FRAME_SAMPLES
    return Clip(
        frames=renderer.render_clip(performance),
        agent=dialogue.agent.cut(first, count),
        user=dialogue.user.cut(first, count),
        agent_before=dialogue.agent.cut(first - BEFORE, BEFORE),
        user_before=dialogue.user.cut(first - BEFORE, BEFORE),
        performance=performance,
        landmarks=renderer.landmarks(performance),
        identity=renderer.identity,
        seed=seed,
        identity_seed=identity_seed,
        start=start,
    )


def neutral_frames(performance: Performance) -> NDArray[np.bool_]:
    """Frames that could be a reference picture: mouth closed, eyes open, hand out of frame, head near the middle."""
    return (
        (performance.mouth_open < 0.02)
        & (performance.blink < 0.05)
        & (performance.hand[:, 0] < 0.02)
        & (np.abs(performance.head).max(axis=1) < 2.5)
    )


def choose_start(whole: Performance, frames: int, rng: np.random.Generator, quiet_share: float = 0.5) -> int:
    """A first frame; with probability `quiet_share` a neutral one that leads into speech of either side."""
    last = len(whole) - frames
    if last <= 0:
        return 0
    anywhere = int(rng.integers(last + 1))
    if rng.random() >= quiet_share:
        return anywhere
    talk = np.concatenate([[0], np.cumsum(whole.state > 0)])
    busy = talk[frames : frames + last + 1] - talk[: last + 1]
    quiet = np.flatnonzero(neutral_frames(whole)[: last + 1])
    if not len(quiet):
        return anywhere
    # Clips of pure silence teach little: prefer quiet starts with more speech to come.
    weight = 0.15 * frames + busy[quiet]
    return int(rng.choice(quiet, p=weight / weight.sum()))


def clip_stream(
    seed: int, frames: int = 85, size: int = 128, *, identities: tuple[int, ...] | None = None,
    tones: bool = False, cache_dir: Path | None = None, cache_identities: int = 64,
) -> Iterator[Clip]:  # fmt: skip
    """Endless clips, 16 from every dialogue of 45 s, another identity in each.

    Args:
        seed: streams of different seeds are independent; give each worker its own.
        frames: length of a clip at 25 fps.
        size: width and height in pixels.
        identities: draw identity seeds from these only; from all if None.
        tones: tones instead of speech (no flite), for tests.
        cache_dir: where spoken sentences are kept.
        cache_identities: how many renderers to keep when `identities` is given.
    """
    rng = np.random.default_rng((seed, 0x57E))
    seconds = max(_STREAM_SECONDS, 2 * frames / FPS)
    known: dict[int, PuppetRenderer] = {}
    while True:
        clip_seed = int(rng.integers(2**31))
        spoken = tone_dialogue(clip_seed, seconds) if tones else make_dialogue(clip_seed, seconds, cache_dir=cache_dir)
        for take in range(_PER_DIALOGUE):
            # Every fourth clip is performed anew, so that sway, gaze and blinks vary over the same speech.
            if take % 4 == 0:
                motion = clip_seed + take
                whole = perform(spoken, motion, int(seconds * FPS))
            who = int(rng.choice(identities)) if identities else int(rng.integers(2**31))
            renderer = known.get(who) or PuppetRenderer(PuppetIdentity.random(who), size)
            if identities and len(known) < cache_identities:
                known[who] = renderer
            yield _cut(motion, who, spoken, whole, choose_start(whole, frames, rng), frames, renderer)
