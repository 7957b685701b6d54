"""Where the clips of a data set come from: numbered dialogues, each side of which is one clip.

Whoever writes shards sees a `ClipSource` alone, so puppets and rendered people are made by the same command. A
source is a small frozen value: it travels to worker processes, and a clip depends on it and on its number only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamavatar.seeds import seed_for
from streamavatar.synth.dialogue import Dialogue, Lane, make_dialogue, tone_dialogue
from streamavatar.synth.performance import FPS, FRAME_SAMPLES, Performance, perform
from streamavatar.synth.scripts import EVERYDAY
from streamavatar.synth.speech import VOICES, Samples
from streamavatar.synth.topics import WIDE

if TYPE_CHECKING:
    from streamavatar.synth.human.scene import Framing

SIDES = ("a", "b")
LANDMARKS = "landmarks."
"""Names of truth in pixels begin with this."""


_MEASURES = ("lip_gap", "lip_gap_relative", "eye_opening", "eye_open", "head_pose", "hand_visible")
"""Truth of rendered people that is not in pixels."""


@dataclass(frozen=True)
class SynthClip:
    """One side of a dialogue, from its beginning.

    Attributes:
        frames: uint8 RGB [F,H,W,3].
        agent, user: float32 16 kHz [F*640], sample 0 at the start of frame 0.
        truth: per frame, first axis F: the fields of `Performance`, and `landmarks.NAME` in pixels.
        meta: what goes into the clip's JSON; `identity` names the person.
    """

    frames: NDArray[np.uint8]
    agent: Samples
    user: Samples
    truth: dict[str, NDArray[Any]]
    meta: dict[str, Any]


class ClipSource(Protocol):
    """Makes the clips of numbered dialogues."""

    @property
    def frames(self) -> int:
        """Length of each clip."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that the clips depend on, as JSON; made before any work.

        Raises:
            UserError: clips cannot be made: something is missing or damaged.
        """
        ...

    def make(self, number: int) -> Iterator[SynthClip]:
        """Both sides of dialogue `number`; the same arguments give the same clips everywhere."""
        ...


@dataclass(frozen=True)
class _Side:
    """One side of a dialogue before it is drawn; `dialogue.agent` is this side's voice."""

    dialogue: Dialogue
    performance: Performance
    person: int
    motion: int
    meta: dict[str, Any]

    def clip(
        self, frames: NDArray[np.uint8], landmarks: dict[str, NDArray[np.float32]], identity: str, **scene: Any
    ) -> SynthClip:
        truth: dict[str, NDArray[Any]] = {f.name: getattr(self.performance, f.name) for f in fields(self.performance)}
        truth |= {LANDMARKS + name: points for name, points in landmarks.items()}
        samples = len(frames) * FRAME_SAMPLES
        return SynthClip(
            frames=frames,
            agent=self.dialogue.agent.cut(0, samples),
            user=self.dialogue.user.cut(0, samples),
            truth=truth,
            meta={"identity": identity, **self.meta, "scene": scene},
        )


def _sides(
    seed: int, number: int, frames: int, identities: int | None, tones: bool, voices: tuple[str, ...], gestures: bool
) -> Iterator[_Side]:
    """Both sides of a dialogue: who, and how they move."""
    speech = seed_for(seed, "dialogue", number)
    spoken = tone_dialogue(speech, frames / FPS) if tones else _spoken(speech, frames / FPS, voices)
    rng = np.random.default_rng(seed_for(seed, "cast", number))
    fresh = 2 * number + np.arange(2)
    cast = rng.choice(identities, 2, replace=identities < 2) if identities else fresh
    for side, name in enumerate(SIDES):
        own, other = (spoken.agent, spoken.user) if side == 0 else (spoken.user, spoken.agent)
        dialogue = Dialogue(own, other)
        motion = seed_for(seed, "motion", number, side)
        person = seed_for(seed, "identity", int(cast[side]))
        meta = {
            "dialogue": number,
            "side": name,
            "seeds": {"source": seed, "dialogue": speech, "motion": motion, "identity": person},
            "agent_lines": _lines(own),
            "user_lines": _lines(other),
        }
        performance = perform(dialogue, motion, frames)
        if not gestures:
            performance = replace(performance, hand=np.zeros_like(performance.hand))
        yield _Side(dialogue, performance, person, motion, meta)


def _spoken(seed: int, seconds: float, voices: tuple[str, ...]) -> Dialogue:
    """Two speakers in rooms of their own; every third dialogue is quick small talk, the others hardly ever repeat."""
    return make_dialogue(seed, seconds, voices=voices, grammar=EVERYDAY if seed % 3 == 0 else WIDE, acoustics=True)


def _lines(lane: Lane) -> list[dict[str, Any]]:
    return [{"text": line.text, "start": round(line.start, 3), "end": round(line.end, 3)} for line in lane.lines]


@dataclass(frozen=True)
class Puppets:
    """The 2-D puppets. Needs OpenCV (extra `synth`), and flite unless `tones`.

    Attributes:
        seed: of everything; sources of different seeds share no clip.
        size: width and height in pixels.
        frames: length of a clip at 25 fps.
        identities: how many different puppets; two new ones in every dialogue if None.
        tones: tones instead of speech, for tests.
        voices: who speaks, see `voices.available_voices`; the same seed and voices give the same data.
        gestures: whether hands come up into the picture.
    """

    seed: int
    size: int = 128
    frames: int = 750
    identities: int | None = None
    tones: bool = False
    voices: tuple[str, ...] = VOICES
    gestures: bool = True

    def describe(self) -> dict[str, Any]:
        if not self.tones:
            _spoken(0, 1.0, self.voices)  # speaks, so a missing synthesiser is noticed now
        return {"people": "puppets", "version": 1, **{f.name: getattr(self, f.name) for f in fields(self)}}

    def make(self, number: int) -> Iterator[SynthClip]:
        from streamavatar.synth.puppet import PuppetIdentity, PuppetRenderer

        for side in _sides(self.seed, number, self.frames, self.identities, self.tones, self.voices, self.gestures):
            renderer = PuppetRenderer(PuppetIdentity.random(side.person), self.size)
            frames, landmarks = renderer.render_clip(side.performance), renderer.landmarks(side.performance)
            yield side.clip(frames, landmarks, f"puppet-{side.person:016x}")


@dataclass(frozen=True)
class People:
    """Rendered people. Needs the extra `human`, an asset folder, and flite unless `tones`.

    Attributes:
        assets: folder with the MakeHuman packs.
        framing: how much of the person is in the picture, see `synth.human`.
        seed, size, frames, identities, tones, voices, gestures: as for `Puppets`.
    """

    assets: Path
    seed: int
    size: int = 256
    frames: int = 750
    framing: Framing = "bust"
    identities: int | None = None
    tones: bool = False
    voices: tuple[str, ...] = VOICES
    gestures: bool = True

    def describe(self) -> dict[str, Any]:
        from streamavatar.synth.human.assets import Assets
        from streamavatar.synth.human.build import build_figure
        from streamavatar.synth.human.identity import HumanIdentity

        if not self.tones:
            _spoken(0, 1.0, self.voices)
        assets = Assets.open(self.assets)
        build_figure(assets, HumanIdentity.random(0, assets))  # reads what every person is made of
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "assets"}
        return {"people": "human", "version": 1, **settings, "assets": _fingerprint(assets.folder)}

    def make(self, number: int) -> Iterator[SynthClip]:
        from streamavatar.synth.human.assets import Assets
        from streamavatar.synth.human.build import build_figure
        from streamavatar.synth.human.identity import HumanIdentity
        from streamavatar.synth.human.motion import move
        from streamavatar.synth.human.scene import random_scene
        from streamavatar.synth.human.truth import landmarks

        assets = Assets.open(self.assets)
        for side in _sides(self.seed, number, self.frames, self.identities, self.tones, self.voices, self.gestures):
            figure = build_figure(assets, HumanIdentity.random(side.person, assets))
            motion = move(figure, side.performance, side.motion)
            scene = random_scene(seed_for(side.motion, "scene"), figure, self.framing, self.size)
            frames = _renderer(self.size).render(figure, motion, scene)
            points = landmarks(figure, motion, scene.camera, self.size)
            measures = {name: points.pop(name) for name in _MEASURES}
            points.pop("lips")  # the last twenty of `face_points`
            points["hands"] *= measures["hand_visible"][..., None, None]
            camera = {"eye": list(scene.camera.eye), "target": list(scene.camera.target), "fov": scene.camera.fov}
            clip = side.clip(frames, points, f"human-{side.person:016x}", framing=self.framing, camera=camera)
            yield replace(clip, truth=clip.truth | measures)


@lru_cache(maxsize=1)
def _renderer(size: int) -> Any:
    """One graphics context per process."""
    from streamavatar.synth.human.render import Renderer

    return Renderer(size)


def _fingerprint(folder: Path) -> str:
    """Changes when a file of the folder is added, removed, or changes its length."""
    digest = blake2b(digest_size=16)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
