"""The pictures of the puppet world in the documentation: a sheet of identities and a second of talking.

    python docs/make_images.py

writes docs/images/identities.png, talking.png and listening.png. Needs the extra `synth`; the speech is the bundled
conversation with its phone times, so flite is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from streamavatar import bundled
from streamavatar.media import read_audio
from streamavatar.synth.dialogue import Dialogue, Lane
from streamavatar.synth.performance import FPS, Performance, neutral, nod_times, perform
from streamavatar.synth.puppet import PuppetIdentity, PuppetRenderer
from streamavatar.synth.speech import SAMPLE_RATE, Phone

IMAGES = Path(__file__).parent / "images"
SIZE = 128
COLUMNS, ROWS = 6, 4
PICTURES, STRIDE = 8, 3  # a strip: every third frame, 24 frames in all
PUPPET = 104  # a seed
TALKING_FROM = 5.4  # seconds: "to the mountains"


def sheet() -> np.ndarray:
    """Identities of the seeds 0, 1, 2, ... in their neutral pose, not chosen."""
    still = neutral()
    cells = [PuppetRenderer(PuppetIdentity.random(seed), SIZE).render(still, 0) for seed in range(COLUMNS * ROWS)]
    return np.concatenate([np.concatenate(cells[r * COLUMNS : (r + 1) * COLUMNS], axis=1) for r in range(ROWS)])


def conversation() -> Dialogue:
    """The bundled conversation with its phones."""
    agent, user = bundled.conversation()
    truth = json.loads((agent.parent / "dialogue.json").read_text(encoding="utf-8"))
    lanes = [
        Lane(read_audio(path, SAMPLE_RATE).samples, tuple(Phone(**phone) for phone in truth[name]["phones"]))
        for name, path in (("agent", agent), ("user", user))
    ]
    return Dialogue(*lanes)


def strip(performance: Performance, start: float) -> np.ndarray:
    """A row of pictures of the puppet, from `start` seconds on."""
    renderer = PuppetRenderer(PuppetIdentity.random(PUPPET), SIZE)
    first = round(start * FPS)
    return np.concatenate([renderer.render(performance, first + STRIDE * i) for i in range(PICTURES)], axis=1)


def main() -> None:
    dialogue = conversation()
    performance = perform(dialogue, seed=0, frames=int(dialogue.seconds * FPS))
    pictures = {
        "identities": sheet(),
        "talking": strip(performance, TALKING_FROM),
        "listening": strip(performance, nod_times(dialogue)[1] - 0.12),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
