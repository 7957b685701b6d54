"""A short GIF of a video, for the README.

python docs/make_gif.py demo.mp4 docs/images/demo.gif --start 3 --seconds 8
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from streamavatar.media import read_video

FPS, STEP = 25, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    frames = read_video(options.video)
    first = round(options.start * FPS)
    chosen = frames[first : first + round(options.seconds * FPS) : STEP]
    height = round(options.width * frames.shape[1] / frames.shape[2])
    pictures = [Image.fromarray(frame).resize((options.width, height), Image.Resampling.LANCZOS) for frame in chosen]
    # One palette for all pictures: a palette per frame would make flat areas flicker.
    sample = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures[:: len(pictures) // 4 or 1]]))
    palette = sample.quantize(192)
    quantised = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    options.gif.parent.mkdir(parents=True, exist_ok=True)
    quantised[0].save(
        options.gif, save_all=True, append_images=quantised[1:], duration=1000 * STEP // FPS, loop=0, optimize=True
    )


if __name__ == "__main__":
    main()
