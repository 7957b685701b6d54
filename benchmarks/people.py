"""Do independent tools see people in the rendered people? Detection, mouth, blinks and identity over many seeds.

MediaPipe's face landmarker must find the face, its jawOpen and eyeBlink must follow our truth, and the dlib face
embedding must keep two clips of one person (other light, background and motion) closer than clips of two people.

    pip install -e '.[human,checks]'
    python benchmarks/people.py --assets DIR --landmarker face_landmarker_v2_with_blendshapes.task --json people.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruments import Embedder, Landmarker
from scores import correlation
from streamavatar.provenance import commit, machine
from streamavatar.seeds import seed_for
from streamavatar.synth.dialogue import make_dialogue
from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.build import build_figure
from streamavatar.synth.human.figure import Motion
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.motion import move
from streamavatar.synth.human.render import Renderer
from streamavatar.synth.human.scene import random_scene
from streamavatar.synth.performance import FPS, Performance, perform

SIZE, SECONDS, TAKES = 256, 8, 2
EMBEDDED = 3
"""Frames per clip whose embeddings are averaged."""


@dataclass
class Take:
    """One clip and what the landmarker saw in it: whether there is a face, and its blendshapes."""

    person: int
    frames: NDArray[np.uint8]
    truth: Performance
    found: NDArray[np.bool_]
    jaw: NDArray[np.float64]
    blink: NDArray[np.float64]


def takes(assets: Assets, people: int, landmarker: Landmarker, every: int) -> Iterator[Take]:
    """`TAKES` clips of every person, each with its own words, light and background."""
    renderer = Renderer(SIZE)
    for person in range(people):
        figure = build_figure(assets, HumanIdentity.random(seed_for(1, "people", person), assets))
        for take in range(TAKES):
            seed = seed_for(1, "take", person, take)
            truth = perform(make_dialogue(seed, SECONDS), seed, SECONDS * FPS)
            scene = random_scene(seed, figure, "bust", SIZE)
            motion = move(figure, truth, seed)
            frames = renderer.render(figure, Motion(motion.expressions[::every], motion.bones[::every]), scene)
            faces = [landmarker.see(frame) for frame in frames]
            shapes = [face.shapes if face else None for face in faces]
            yield Take(
                person,
                frames,
                truth,
                np.array([s is not None for s in shapes]),
                np.array([s["jawOpen"] if s else np.nan for s in shapes]),
                np.array([(s["eyeBlinkLeft"] + s["eyeBlinkRight"]) / 2 if s else np.nan for s in shapes]),
            )


def separation(vectors: list[tuple[int, NDArray[np.float64]]]) -> dict[str, float]:
    """How well distances tell "same person" from "two people".

    `ordered` is the share of (same, different) pairs of pairs in which the same person is closer; `apart` is the share
    of pairs on the right side of the best single threshold, both kinds counted alike.
    """
    same, different = [], []
    for index, (person, vector) in enumerate(vectors):
        for other, another in vectors[:index]:
            (same if person == other else different).append(float(np.linalg.norm(vector - another)))
    near, far = np.array(same), np.array(different)
    ordered = float((near[:, None] < far[None]).mean())
    apart = max(((near <= t).mean() + (far > t).mean()) / 2 for t in np.concatenate((near, far)))
    return {"same": float(np.median(near)), "different": float(np.median(far)), "ordered": ordered, "apart": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--landmarker", type=Path, required=True, help="MediaPipe's .task file with blendshapes")
    parser.add_argument("--people", type=int, default=48)
    parser.add_argument("--every", type=int, default=4, help="check every n-th frame")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()

    began = process_time()
    landmarker, embedder = Landmarker(args.landmarker, shapes=True), Embedder()
    vectors: list[tuple[int, NDArray[np.float64]]] = []
    found, jaws, blinks, lost = [], [], [], []
    for take in takes(Assets.open(args.assets), args.people, landmarker, args.every):
        found.append(take.found)
        if take.found.mean() < 1:
            lost.append(take.person)
        jaws.append(correlation(take.jaw, take.truth.mouth_open[:: args.every]))
        blinks.append(correlation(take.blink, take.truth.blink[:: args.every]))
        picks = [embedder.embed(take.frames[i]) for i in np.linspace(0, len(take.frames) - 1, EMBEDDED).astype(int)]
        seen = [v for v in picks if v is not None]
        if seen:
            vectors.append((take.person, np.mean(seen, axis=0)))
        print(f"person {take.person:3d}  found {take.found.mean():.2f}  jaw {jaws[-1]:.2f}  blink {blinks[-1]:.2f}")
    landmarker.close()
    frames = np.concatenate(found)
    values: dict[str, Any] = {
        "people": args.people,
        "frames": len(frames),
        "found": float(frames.mean()),
        "people_with_lost_frames": sorted(set(lost)),
        "jaw_open_correlation": float(np.nanmean(jaws)),
        "eye_blink_correlation": float(np.nanmean(blinks)),
        "clips_embedded": len(vectors),
        "identity": separation(vectors),
        "cpu_seconds": process_time() - began,
        "machine": machine(),
        "commit": commit(),
    }
    print(json.dumps(values, indent=2))
    if args.json:
        args.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
