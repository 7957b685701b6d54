"""The pictures of rendered people in the documentation.

    python docs/make_people.py --assets DIR

writes docs/images/people.jpg (48 identities, not chosen), people-acts.jpg (what a person does) and people.gif (a few
seconds of one clip, without its sound). Needs the extra `human`, flite, and an asset folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from streamavatar.seeds import seed_for
from streamavatar.synth.dialogue import make_dialogue
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.figure import Figure, Motion
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.motion import move
from streamavatar.synth.human.render import Renderer
from streamavatar.synth.human.scene import random_scene, studio_scene
from streamavatar.synth.performance import FPS, Performance, neutral, perform

IMAGES = Path(__file__).parent / "images"
COLUMNS, ROWS, SIZE = 12, 4, 128
ACTORS, ACTS_SIZE = (0, 8, 12), 192
GIF_PERSON, GIF_SIZE, GIF_SECONDS, GIF_STEP = 2, 224, 6, 2
SEED = 5


def person(assets: Assets, index: int) -> Figure:
    return build_figure(assets, HumanIdentity.random(seed_for(1, "people", index), assets))


def sheet(assets: Assets) -> np.ndarray:
    """The first 48 people, at rest, each in a scene of its own."""
    cells = []
    with Renderer(SIZE) as renderer:
        for index in range(COLUMNS * ROWS):
            figure = person(assets, index)
            motion = move(figure, neutral(), index)
            cells.append(renderer.render(figure, motion, random_scene(index, figure, "bust", SIZE))[0])
    return np.concatenate([np.concatenate(cells[r * COLUMNS : (r + 1) * COLUMNS], axis=1) for r in range(ROWS)])


def moments(performance: Performance) -> list[int]:
    """Frames: at rest, an open vowel, a spread one, a round one, closed lips, a blink, a smile, a raised hand."""
    talking = np.flatnonzero(performance.state == 2)

    def most(values: np.ndarray, among: np.ndarray = talking) -> int:
        return int(among[np.argmax(values[among])])

    anywhere = np.arange(len(performance))
    return [
        most(-performance.mouth_open - performance.blink, np.flatnonzero(performance.state < 2)),
        most(performance.mouth_open),
        most(performance.visemes[:, 11] + performance.mouth_wide),
        most(performance.visemes[:, 14]),
        most(performance.visemes[:, 1]),
        most(performance.blink, anywhere),
        most(performance.smile, anywhere),
        most(performance.hand[:, 0], anywhere),
    ]


def acts(assets: Assets) -> np.ndarray:
    """What three people do in one performance."""
    performance = perform(make_dialogue(SEED, 20), SEED, 20 * FPS)
    picks = moments(performance)
    rows = []
    with Renderer(ACTS_SIZE) as renderer:
        for index in ACTORS:
            figure = person(assets, index)
            motion = move(figure, performance, index)
            some = Motion(motion.expressions[picks], motion.bones[picks])
            rows.append(np.concatenate(renderer.render(figure, some, studio_scene(figure, "bust", ACTS_SIZE)), axis=1))
    return np.concatenate(rows)


def clip(assets: Assets) -> list[Image.Image]:
    """A person who talks and listens."""
    dialogue = make_dialogue(SEED, 20)
    performance = perform(dialogue, SEED, 20 * FPS)
    length = GIF_SECONDS * FPS
    talk = np.concatenate([[0], np.cumsum(performance.state == 2)])
    start = int(np.argmin(np.abs(talk[length:] - talk[:-length] - 0.6 * length)))  # a bit more talking than listening
    figure = person(assets, GIF_PERSON)
    motion = move(figure, performance, GIF_PERSON)
    some = slice(start, start + length, GIF_STEP)
    with Renderer(GIF_SIZE) as renderer:
        frames = renderer.render(
            figure, Motion(motion.expressions[some], motion.bones[some]), random_scene(0, figure, "bust", GIF_SIZE)
        )
    palette = Image.fromarray(np.concatenate(frames[:: len(frames) // 4])).quantize(160)
    return [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    assets = Assets.open(parser.parse_args().assets)
    for name, pixels in (("people.jpg", sheet(assets)), ("people-acts.jpg", acts(assets))):
        Image.fromarray(pixels).save(IMAGES / name, quality=90, optimize=True)
    pictures = clip(assets)
    pictures[0].save(
        IMAGES / "people.gif", save_all=True, append_images=pictures[1:], duration=1000 * GIF_STEP // FPS, loop=0,
        optimize=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
