"""Makes the demo inputs that ship: eight portraits of rendered people and one conversation, with its truth.

Run `main(Path("src/streamavatar/assets"), Path("makehuman"))`, the latter with the packs that docs/synthetic-people.md
names. No portrait's person is in a data set of `streamavatar data synth`, whose people have other seeds.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamavatar.seeds import seed_for
from streamavatar.synth.dialogue import Dialogue, Lane, Speaker, scripted_dialogue
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.figure import Figure, Motion, Pixels, Scene
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.motion import move
from streamavatar.synth.human.render import Renderer
from streamavatar.synth.human.scene import head_box, random_scene
from streamavatar.synth.human.truth import landmarks
from streamavatar.synth.performance import neutral
from streamavatar.synth.speech import SAMPLE_RATE

# name -> (number of the person, description); chosen by looking at many.
PORTRAITS: dict[str, tuple[int, str]] = {
    "ada": (35, "Woman with long dark hair and a purple top"),
    "ben": (27, "Man with short brown hair and a blue shirt"),
    "clara": (33, "Woman with long red hair and a striped shirt"),
    "david": (37, "Man with short black hair and a grey jacket"),
    "emi": (38, "Woman with short black hair and a pink top"),
    "farid": (34, "Man with dark hair and a purple polo shirt"),
    "grace": (50, "Woman with long grey hair and a green jumper"),
    "hugo": (22, "Man with blond hair and a dark purple polo shirt"),
}
SIZE, FACE = 256, (128, 127)
"""Of the portraits, and where the default model's codec wants the middle between eyes and mouth, in pixels."""

TURNS = (
    ("user", "Hi there! How was your weekend?"),
    ("agent", "Wonderful. We drove to the mountains, and walked above the clouds."),
    ("user", "That sounds lovely. I stayed home and baked bread."),
    ("agent", "Oh, I would love to try it. Maybe you can bring some on Monday."),
)


def portrait(number: int, assets: Assets, renderer: Renderer) -> Pixels:
    """A person at rest, with the face where `FACE` says, RGB uint8 [size,size,3]."""
    return renderer.render(*posed(number, assets))[0]


def posed(number: int, assets: Assets) -> tuple[Figure, Motion, Scene]:
    """A person at rest, seen by a camera that has the face in its place."""
    seed = seed_for(2, "portrait", number)
    figure = build_figure(assets, HumanIdentity.random(seed, assets))
    motion = move(figure, neutral(1), 0)
    scene = random_scene(seed_for(seed, "scene"), figure, "bust", SIZE)
    middle, step = head_box(figure)[0], 0.01
    aside = np.stack((middle, *(middle + step * np.eye(3)[:2]))).astype(np.float32)
    for _ in range(2):  # perspective makes the first step a little too long or short
        start, *ends = scene.camera.project(aside, SIZE)
        pixels = (np.stack(ends) - start) / step  # by which a metre to the right, and one up, move the picture
        moved = np.append(np.linalg.solve(pixels.T, face_of(figure, motion, scene) - FACE), 0)
        eye, target = (tuple((np.asarray(place) + moved).tolist()) for place in (scene.camera.eye, scene.camera.target))
        scene = replace(scene, camera=replace(scene.camera, eye=eye, target=target))
    return figure, motion, scene


def face_of(figure: Figure, motion: Motion, scene: Scene) -> NDArray[np.float64]:
    """The middle between eyes and mouth in the picture, right and down in pixels."""
    marks = landmarks(figure, motion, scene.camera, SIZE)
    mouth, left, right = (marks[name][0].reshape(2, 2).mean(0) for name in ("mouth", "eye_left", "eye_right"))
    return np.asarray((mouth + (left + right) / 2) / 2, np.float64)


def bundled_dialogue() -> Dialogue:
    """The shipped conversation, spoken anew (flite)."""
    return scripted_dialogue(TURNS, (Speaker("slt", 1.0, 1.0), Speaker("rms", 1.0, 1.02)), gap=0.5)


def main(out_dir: Path, assets: Path) -> None:
    """Write `portraits/` and `dialogue/` below `out_dir`; people are made of the packs in `assets`."""
    _write_portraits(out_dir / "portraits", Assets.open(assets))
    _write_dialogue(out_dir / "dialogue")


def _write_portraits(folder: Path, assets: Assets) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    with Renderer(SIZE) as renderer:
        for name, (number, description) in PORTRAITS.items():
            file = f"{name}.png"
            Image.fromarray(portrait(number, assets, renderer)).save(folder / file, optimize=True)
            index[name] = {"file": file, "description": description}
    (folder / "portraits.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_dialogue(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    dialogue = bundled_dialogue()
    truth: dict[str, object] = {"sample_rate": SAMPLE_RATE, "seconds": round(dialogue.seconds, 4)}
    for name, lane in (("agent", dialogue.agent), ("user", dialogue.user)):
        file = f"{name}.flac"
        _write_flac(folder / file, lane)
        truth[name] = {
            "file": file,
            "lines": [_rounded(asdict(line)) for line in lane.lines],
            "phones": [_rounded(asdict(phone)) for phone in lane.phones],
        }
    (folder / "dialogue.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def _rounded(values: dict[str, object]) -> dict[str, object]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def _write_flac(path: Path, lane: Lane) -> None:
    """16 kHz mono 16-bit FLAC."""
    import av

    data = np.clip(np.round(lane.samples * 32767), -32768, 32767).astype(np.int16)
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono")
        stream.codec_context.format = "s16"
        for first in range(0, len(data), 4096):
            frame = av.AudioFrame.from_ndarray(data[None, first : first + 4096], format="s16", layout="mono")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = first
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
