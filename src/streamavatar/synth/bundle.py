"""Makes the demo inputs that ship: eight portraits and one conversation, with their truth.

The same identities can be rendered again from their numbers, so that a generated video of a bundled portrait has a
truth to compare with. Run `main(Path("src/streamavatar/assets"), Path("makehuman"))` after changing the renderer.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from streamavatar.seeds import seed_for
from streamavatar.synth.dialogue import Dialogue, Lane, Speaker, scripted_dialogue
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.motion import move
from streamavatar.synth.human.render import Renderer
from streamavatar.synth.human.scene import random_scene
from streamavatar.synth.performance import neutral
from streamavatar.synth.speech import SAMPLE_RATE

# name -> (number of the identity, description); chosen by looking at sixty.
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

TURNS = (
    ("user", "Hi there! How was your weekend?"),
    ("agent", "Wonderful. We drove to the mountains, and walked above the clouds."),
    ("user", "That sounds lovely. I stayed home and baked bread."),
    ("agent", "Oh, I would love to try it. Maybe you can bring some on Monday."),
)


def portrait(assets: Assets, number: int, size: int = 256) -> np.ndarray:
    """An identity at rest in a scene of its own, RGB uint8 [size,size,3]; training sets draw others."""
    figure = build_figure(assets, HumanIdentity.random(seed_for(2, "portrait", number), assets))
    with Renderer(size) as renderer:
        scene = random_scene(number, figure, "bust", size)
        return renderer.render(figure, move(figure, neutral(), number), scene)[0]


def bundled_dialogue() -> Dialogue:
    """The shipped conversation, spoken anew (flite)."""
    return scripted_dialogue(TURNS, (Speaker("slt", 1.0, 1.0), Speaker("rms", 1.0, 1.02)), gap=0.5)


def main(out_dir: Path, assets: Path) -> None:
    """Write `portraits/` and `dialogue/` below `out_dir`; `assets` holds the MakeHuman packs."""
    _write_portraits(out_dir / "portraits", Assets.open(assets))
    _write_dialogue(out_dir / "dialogue")


def _write_portraits(folder: Path, assets: Assets) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for name, (number, description) in PORTRAITS.items():
        file = f"{name}.png"
        Image.fromarray(portrait(assets, number)).save(folder / file, optimize=True)
        index[name] = {"file": file, "description": description, "identity": number}
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
