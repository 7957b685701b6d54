"""Does the person stay the same? Ten minutes of the bundled conversation, and what changes by the minute.

Per minute of video: how far the pictures are from the reference (mean absolute difference of 0..255, over all frames),
how sharp they are (variance of the Laplacian over that of the reference), and how much they move (mean absolute
difference of neighbouring frames). A model that drifts gets farther, blurrier or stiller.

    python benchmarks/drift.py --minutes 10 --json drift.json --sheet docs/images/drift.jpg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from instruments import sharpness
from streamavatar import bundled
from streamavatar.avatar import Avatar
from streamavatar.media import read_audio, read_image
from streamavatar.provenance import commit, machine

Frames = NDArray[np.uint8]
AT = 140, 60  # frames of a round of the conversation that the sheet shows: talking, listening


def measure(frames: Frames, reference: Frames) -> dict[str, float]:
    some = frames[::5]
    return {
        "distance": float(np.abs(some.astype(np.float32) - reference).mean()),
        "sharpness": float(np.mean([sharpness(frame) for frame in some]) / sharpness(reference)),
        "motion": float(np.abs(np.diff(frames.astype(np.int16), axis=0)).mean()),
    }


def follow(avatar: Avatar, name: str, minutes: float) -> tuple[list[dict[str, float]], list[Frames]]:
    """Figures per round of the conversation, and pictures at a few of them."""
    size = avatar.config.geometry
    reference = read_image(bundled.portrait(name).path, size.height, size.width)
    agent, user = (read_audio(path, 16000).samples for path in bundled.conversation())
    length = min(len(agent), len(user)) // 640 * 640
    rounds = int(np.ceil(minutes * 60 * 16000 / length))
    shown = set(np.unique(np.geomspace(1, rounds, 6).round().astype(int)) - 1)
    session = avatar.session(reference, seed=3)
    figures, pictures = [], []
    for number in range(rounds):
        outputs = session.push(agent=agent[:length], user=user[:length])
        frames = np.concatenate([output.frames for output in outputs])
        figures.append({"minute": number * length / 16000 / 60, **measure(frames, reference)})
        if number in shown:
            pictures += [frames[at] for at in AT]
    return figures, pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model folder; the bundled default if left out")
    parser.add_argument("--avatars", nargs="+", default=["clara", "farid"])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    avatar = Avatar.load(options.model)
    report, rows = {}, []
    for name in options.avatars:
        report[name], pictures = follow(avatar, name, options.minutes)
        rows.append(np.concatenate(pictures, axis=1))
        for part, label in ((report[name][:4], "first minute"), (report[name][-4:], "last minute")):
            means = {key: np.mean([row[key] for row in part]) for key in ("distance", "sharpness", "motion")}
            print(f"{name:8} {label:13} " + "  ".join(f"{key} {value:.3f}" for key, value in means.items()))
    if options.json:
        values = {"model": avatar.config.name, "rounds": report, "machine": machine(), "commit": commit()}
        options.json.write_text(json.dumps(values, indent=2) + "\n")
    if options.sheet:
        sheet = Image.fromarray(np.concatenate(rows))
        sheet.reduce(max(1, sheet.height // len(rows) // 128)).save(options.sheet, quality=88)


if __name__ == "__main__":
    main()
