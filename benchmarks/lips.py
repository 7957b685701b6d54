"""Do the lips follow the agent's lane, and does the face listen? Measured on held-out puppets and speech.

For every clip the model sees one neutral picture and the two lanes; the renderer gives the truth. Mouth opening is
read from pixels by the same instrument in the rendered truth, in the codec's round trip and in the generated video, so
the first two rows are the ceiling. "swap" correlates with the truth of another clip: what chance gives.

    python benchmarks/lips.py --model runs/puppets/model --clips 32 --json lips.json --sheet lips.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from instruments import round_trip
from scores import correlation, mean, reach
from streamavatar.avatar import Avatar
from streamavatar.engine import run_lanes
from streamavatar.provenance import commit, machine
from streamavatar.seeds import seed_for
from streamavatar.synth.clips import Clip, make_clip
from streamavatar.synth.measure import mouth_opening
from streamavatar.synth.performance import neutral
from streamavatar.synth.puppet import PuppetRenderer

Frames = NDArray[np.uint8]
LISTENING, TALKING = 1, 2
REACH = 10


@dataclass
class Reading:
    """What is read from one video: mouth opening 0..1 and the head's place in pixels, per frame."""

    opening: NDArray[np.float64]
    head: NDArray[np.float64]


def held_out(count: int, seconds: float, size: int) -> Iterator[Clip]:
    """Clips of people and dialogues that no recipe's seeds reach."""
    for index in range(count):
        yield make_clip(seed_for(0, "held-out", index) % 2**31, frames=int(seconds * 25), size=size)


def head_shift(frames: Frames, picture: Frames, box: NDArray[np.float32]) -> NDArray[np.float64]:
    """Where the part of the face above the mouth has moved to, by template matching: dx, dy in pixels, [F, 2]."""
    x0, y0, x1, y1 = box.round().astype(int)
    template = cv2.cvtColor(picture[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    left, top = max(0, x0 - REACH), max(0, y0 - REACH)
    shifts = []
    for frame in frames:
        area = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[top : y1 + REACH, left : x1 + REACH]
        scores = cv2.matchTemplate(area, template, cv2.TM_CCOEFF_NORMED)
        _, _, _, (x, y) = cv2.minMaxLoc(scores)
        shifts.append((x - (x0 - left), y - (y0 - top)))
    return np.array(shifts, np.float64)


def read(frames: Frames, picture: Frames, marks: dict[str, NDArray[np.float32]]) -> Reading:
    """Opening and head place of a video of the person in `picture`, whose landmarks are `marks` (one frame)."""
    mouth, left, right = (marks[name][0] for name in ("mouth", "eye_left", "eye_right"))
    eyes = np.array([min(left[0], right[0]), min(left[1], right[1]), max(left[2], right[2]), mouth[1]])
    shift = head_shift(frames, picture, eyes)
    boxes = mouth[None] + np.concatenate((shift, shift), axis=1)
    return Reading(mouth_opening(frames, boxes, reference=picture, reference_box=mouth), shift)


def generate(avatar: Avatar, clip: Clip, picture: Frames, seed: int) -> Frames:
    session = avatar.session(picture, seed=seed)
    lanes = {"agent": clip.agent, "user": clip.user}
    return np.concatenate([output.frames for output in run_lanes(session, lanes, len(clip.frames) / 25)])


def evaluate(avatar: Avatar, clips: list[Clip], others: list[Clip]) -> tuple[dict[str, object], list[Frames]]:
    """Figures over all clips, and the generated videos; `others` are the clips of the swap control."""
    rows: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rows.setdefault(name, []).append(value)

    videos = []
    for index, (clip, other) in enumerate(zip(clips, others, strict=True)):
        renderer = PuppetRenderer(clip.identity, avatar.config.geometry.height)
        pose = neutral(1)
        picture, marks = renderer.render(pose, 0), renderer.landmarks(pose)
        made = generate(avatar, clip, picture, seed=index)
        videos.append(made)
        truth = clip.performance.mouth_open.astype(np.float64)
        talking, listening = clip.performance.state == TALKING, clip.performance.state == LISTENING
        readings = {
            "rendered": read(clip.frames, picture, marks),
            "codec": read(round_trip(avatar.model.codec, clip.frames, picture), picture, marks),
            "generated": read(made, picture, marks),
        }
        for name, reading in readings.items():
            use = talking[: len(reading.opening)]
            known = truth[: len(reading.opening)]
            note(f"lips/{name}/talking", correlation(reading.opening[use], known[use]))
            note(f"lips/{name}/all", correlation(reading.opening, known))
        opening, head = readings["generated"].opening, readings["generated"].head
        note("lips/swap/talking", correlation(opening[talking], other.performance.mouth_open[talking].astype(float)))
        for lag in (-2, -1, 0, 1, 2):
            note(f"lips/lag/{lag:+d}", correlation(np.roll(opening, -lag)[talking], truth[talking]))
        if listening.sum() > 25 and talking.sum() > 25:
            spread = [reach(opening[m]) for m in (listening, talking)]
            note("listening/mouth_range_over_talking", spread[0] / max(spread[1], 1e-6))
        if listening.sum() > 25:
            pitch = clip.performance.head[:, 1].astype(float)
            note("listening/nod_correlation", correlation(head[listening, 1], pitch[listening]))
        real = readings["rendered"].head.std(axis=0).sum()
        note("motion/head_over_truth", float(head.std(axis=0).sum() / real) if real > 0.2 else float("nan"))
    return {name: mean(values) for name, values in sorted(rows.items())}, videos


def sheet(clips: list[Clip], videos: list[Frames], path: Path, columns: int = 12, people: int = 4) -> None:
    """Rendered truth above generated video, talking frames first, for some people."""
    rows = []
    for clip, video in list(zip(clips, videos, strict=True))[:people]:
        talking = np.flatnonzero(clip.performance.state == TALKING)
        listening = np.flatnonzero(clip.performance.state == LISTENING)
        picks = [np.linspace(0, len(w) - 1, columns // 2).astype(int) for w in (talking, listening)]
        chosen = np.concatenate([w[p] for w, p in zip((talking, listening), picks, strict=True) if len(w)])
        chosen = np.resize(chosen, columns)
        rows += [np.concatenate(list(clip.frames[chosen]), axis=1), np.concatenate(list(video[chosen]), axis=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows)).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="model folder that `streamavatar train puppets` made")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=9.6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    if options.clips < 2:
        parser.error("--clips: at least 2, for the swap control")
    avatar = Avatar.load(options.model)
    clips = list(held_out(options.clips, options.seconds, avatar.config.geometry.height))
    figures, videos = evaluate(avatar, clips, clips[1:] + clips[:1])
    for name, value in figures.items():
        print(f"{name:36} {value['value']:6.3f}  [{value['low']:.3f}, {value['high']:.3f}]  {value['clips']} clips")
    if options.json:
        report = {"model": avatar.config.name, "figures": figures, "machine": machine(), "commit": commit()}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.sheet:
        sheet(clips, videos, options.sheet)


if __name__ == "__main__":
    main()
