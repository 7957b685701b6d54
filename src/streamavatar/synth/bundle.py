"""Makes the demo inputs that ship: eight portraits and one conversation, with their truth.

The same identities can be rendered again from their seeds, so that a generated video of a bundled portrait
has a truth to compare with. Run `main(Path("src/streamavatar/assets"))` after changing the puppets.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from streamavatar.synth.dialogue import Dialogue, Lane, Speaker, scripted_dialogue
from streamavatar.synth.performance import neutral
from streamavatar.synth.puppet import PuppetIdentity, PuppetRenderer
from streamavatar.synth.speech import SAMPLE_RATE

# name -> (identity seed, description); chosen by looking at many seeds.
PORTRAITS: dict[str, tuple[int, str]] = {
    "ada": (104, "Woman with dark curls and a blue blazer"),
    "ben": (156, "Man with brown hair, stubble and a green blazer"),
    "clara": (189, "Woman with long red hair and a bright green jumper"),
    "david": (168, "Man with short black hair, stubble and a purple jumper"),
    "emi": (157, "Woman with a black bob and a tan blazer"),
    "farid": (137, "Man with a black beard, round glasses and a blue shirt"),
    "grace": (150, "Woman with long grey hair and a teal roll-neck"),
    "hugo": (131, "Man with blond hair and a purple jumper"),
}

TURNS = (
    ("user", "Hi there! How was your weekend?"),
    ("agent", "Wonderful. We drove to the mountains, and walked above the clouds."),
    ("user", "That sounds lovely. I stayed home and baked bread."),
    ("agent", "Oh, I would love to try it. Maybe you can bring some on Monday."),
)


def portrait(seed: int, size: int = 256) -> np.ndarray:
    """The neutral pose of an identity, RGB uint8 [size,size,3]."""
    return PuppetRenderer(PuppetIdentity.random(seed), size).render(neutral(1), 0)


def bundled_dialogue() -> Dialogue:
    """The shipped conversation, spoken anew (flite)."""
    return scripted_dialogue(TURNS, (Speaker("slt", 1.0, 1.0), Speaker("rms", 1.0, 1.02)), gap=0.5)


def main(out_dir: Path) -> None:
    """Write `portraits/` and `dialogue/` below `out_dir`."""
    _write_portraits(out_dir / "portraits")
    _write_dialogue(out_dir / "dialogue")


def _write_portraits(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    index = {}
    for name, (seed, description) in PORTRAITS.items():
        file = f"{name}.png"
        Image.fromarray(portrait(seed)).save(folder / file, optimize=True)
        index[name] = {"file": file, "description": description, "identity_seed": seed}
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
