r"""What does each stage of training do to the samples? Held-out people after every stage, by the same instruments.

Rows: truth (what the instruments can see at best), the codec alone, the teacher, the student after ODE regression, SiD
and adversarial refinement, and the model as it was exported. A model folder has the rows truth, codec and model. Every
figure is read from pixels: lips and nose by MediaPipe's landmarks, the person by the dlib face embedding, sharpness by
the variance of the Laplacian.

    pip install -e '.[train,checks]'
    python benchmarks/stages.py runs/people --shards heldout --landmarker face_landmarker_v2_with_blendshapes.task \
        --out stages --json stages.json --sheet docs/images/stages.jpg

Videos and readings are kept in --out: the command may be stopped and given again, and makes what is missing or has
changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from instruments import Embedder, Frames, Landmarker, Reading, read
from rows import CAUSAL, RATE, WEIGHTS, HeldOut, Maker, Settings, TrainedRun
from scores import Matches, correlation, follows, match, mean, peaks, ratio, reach, share, slope, wander
from streamavatar.errors import UserError
from streamavatar.provenance import commit, machine
from streamavatar.synth.performance import FPS, LISTENING, TALKING, Performance

VERSION = 1
"""Of the instruments: readings of another one are made again."""
EMBED_EVERY, LONG_EVERY, LONG_EMBED_EVERY = 25, 5, 5
NOD_DEGREES, NOD_SPANS = 2.0, 0.06
"""A nod is a peak of the true pitch, or of the nose's height in eye spans (a true one has 5 degrees, 0.14 spans)."""
NOD_APART, NOD_WINDOW, NOD_WITHIN = 10, 26, 10
LABELS = {
    "truth": "truth", "codec": "codec alone", "teacher": "teacher", "ode": "ODE start", "sid": "SiD",
    "adversarial": "adversarial", "model": "as exported",
}  # fmt: skip


class Videos:
    """Videos and readings by row and clip, made when first asked for and kept in a folder."""

    def __init__(self, clips: HeldOut, run: TrainedRun, settings: Settings, folder: Path, args: argparse.Namespace):
        self.clips, self.run, self.settings, self.folder, self.args = clips, run, settings, folder, args
        self._maker: tuple[str, Maker] | None = None
        self._eyes: tuple[Landmarker, Embedder] | None = None
        self._places: dict[str, Path] = {}

    def video(self, row: str, index: int) -> Frames:
        if row == "truth":
            return self._make(row).video(self.clips.window(index), index)
        return self._kept(
            row, f"{self.clips.entries[index].key}.npz", lambda: self._make(row).video(self.clips.window(index), index)
        )

    def reading(self, row: str, index: int) -> Reading:
        return self._read(row, f"{self.clips.entries[index].key}", lambda: self.video(row, index), EMBED_EVERY)

    def reference(self, index: int) -> Reading:
        """Of the reference picture alone."""
        return self._read(
            "truth", f"{self.clips.entries[index].key}.reference", lambda: self.clips.window(index).frames[:1], 1
        )

    def long(self, row: str, index: int, frames: int) -> Reading:
        """Of every `LONG_EVERY`-th frame of a long video: the clip's lanes over and over, `frames` or more in all."""
        name = f"{self.clips.entries[index].key}.long{frames}"
        return self._read(
            row, name, lambda: self._kept(row, name + ".npz", lambda: self._roll(row, index, frames)), LONG_EMBED_EVERY
        )

    def close(self) -> None:
        """Let go of the landmarker."""
        if self._eyes is not None:
            self._eyes[0].close()

    def _roll(self, row: str, index: int, frames: int) -> Frames:
        clip = self.clips.window(index)
        length = len(clip.agent) * FPS // RATE
        rounds = -(-frames // length)
        lanes = {"agent": np.tile(clip.agent, rounds), "user": np.tile(clip.user, rounds)}
        kept, place = [], 0
        for part in self._make(row).rollout(clip.frames[0], lanes, rounds * length, index):
            kept.append(part[-place % LONG_EVERY :: LONG_EVERY])
            place += len(part)
        return np.concatenate(kept)

    def _make(self, row: str) -> Maker:
        if self._maker is None or self._maker[0] != row:
            scratch = self._place(row) / "model"
            self._maker = row, Maker(self.run, row, self.settings, scratch, self.args.threads)
        return self._maker[1]

    def _place(self, row: str) -> Path:
        """The folder of a row, of its own for all that the row depends on."""
        if row not in self._places:
            digest = hashlib.sha256((self.clips.digest + self.run.digest(row, self.settings)).encode()).hexdigest()
            self._places[row] = self.folder / f"{row}-{digest[:10]}"
            self._places[row].mkdir(parents=True, exist_ok=True)
        return self._places[row]

    def _kept(self, row: str, name: str, make: Callable[[], Frames]) -> Frames:
        path = self._place(row) / name
        if not path.exists():
            temporary = path.with_suffix(".partial.npz")
            np.savez(temporary, frames=make())
            temporary.replace(path)
        with np.load(path) as stored:
            return stored["frames"]

    def _read(self, row: str, name: str, frames: Callable[[], Frames], every: int) -> Reading:
        path = self._place(row) / f"{name}.reading{VERSION}.npz"
        if not path.exists():
            self._eyes = self._eyes or (Landmarker(self.args.landmarker), Embedder())
            began = time.monotonic()
            read(frames(), *self._eyes, every).save(path)
            print(f"{row} {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        return Reading.load(path)


# figures ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What is known of one clip, for frames 1 .. 4n."""

    performance: Performance
    reference: Reading

    @property
    def span(self) -> float:
        return float(self.reference.span[0])

    @property
    def talking(self) -> NDArray[np.bool_]:
        return self.performance.state == TALKING

    @property
    def listening(self) -> NDArray[np.bool_]:
        return self.performance.state == LISTENING

    @property
    def reacting(self) -> NDArray[np.bool_]:
        """While listening and, not yet talking, in the second after: a nod follows the end of what was said."""
        recent = np.convolve(self.listening, np.ones(1 + FPS))[: len(self.listening)] > 0
        return recent & (self.performance.state < TALKING)

    @property
    def nods(self) -> NDArray[np.int64]:
        return peaks(self.performance.head[:, 1], NOD_DEGREES, NOD_APART, NOD_WINDOW)


def figures(truths: list[Truth], readings: list[Reading], real: list[Reading]) -> dict[str, Any]:
    """All figures of one row over all clips; `real` is what the instruments see in the truth."""
    gaps = [r.gap / t.span for r, t in zip(readings, truths, strict=True)]
    real_gaps = [r.gap / t.span for r, t in zip(real, truths, strict=True)]
    found = [np.isfinite(r.gap) for r in readings]
    talk_ranges = [reach(gap[t.talking]) for gap, t in zip(gaps, truths, strict=True)]
    listen_ranges = [reach(gap[t.listening]) for gap, t in zip(gaps, truths, strict=True)]
    real_ranges = [reach(gap[t.talking]) for gap, t in zip(real_gaps, truths, strict=True)]
    return {
        "found": share([f.sum() for f in found], [len(f) for f in found]),
        **_lips(truths, gaps),
        "listening_range": ratio(listen_ranges, talk_ranges),
        "listening_range_of_true_talking": ratio(listen_ranges, real_ranges),
        "nods": _nods(truths, readings),
        "nod_correlation": mean(
            [
                follows(r.nose[t.reacting, 1], t.performance.head[t.reacting, 1])
                for r, t in zip(readings, truths, strict=True)
            ]
        ),
        "identity": _identity(truths, readings),
        "head_motion": ratio(*_both(readings, real, lambda r: wander(r.nose))),
        "mouth_motion": ratio(talk_ranges, real_ranges),
        "sharp_face": mean([_sharp(r.sharp_face, s.sharp_face) for r, s in zip(readings, real, strict=True)]),
        "sharp_mouth": mean([_sharp(r.sharp_mouth, s.sharp_mouth) for r, s in zip(readings, real, strict=True)]),
    }


def _lips(truths: list[Truth], gaps: list[NDArray[np.float64]]) -> dict[str, Any]:
    """Mouth opening against the truth of the clip while talking, against that of another clip, and at other lags."""
    own, swapped = [], []
    lags: dict[int, list[float]] = {lag: [] for lag in range(-3, 4)}
    for index, (truth, gap) in enumerate(zip(truths, gaps, strict=True)):
        opening = truth.performance.mouth_open
        own.append(follows(gap[truth.talking], opening[truth.talking]))
        other = truths[(index + 1) % len(truths) :] + truths[: (index + 1) % len(truths)]
        talks = [t.performance.mouth_open[t.talking] for t in other[:-1]]
        count = int(truth.talking.sum())
        rival = next((talk for talk in talks if len(talk) >= count / 2), np.empty(0))
        both = min(count, len(rival))
        swapped.append(follows(gap[truth.talking][:both], rival[:both]))
        for lag, values in lags.items():
            values.append(correlation(np.roll(gap, -lag)[truth.talking], opening[truth.talking]))
    means = {lag: mean(values)["value"] for lag, values in lags.items()}
    best = max(means, key=lambda lag: np.nan_to_num(means[lag], nan=-1.0))
    return {"lips": mean(own), "lips_swapped": mean(swapped), "lips_lag": {"best": best, "means": means}}


def _nods(truths: list[Truth], readings: list[Reading]) -> dict[str, Any]:
    found: list[Matches] = []
    for truth, reading in zip(truths, readings, strict=True):
        seen = peaks(reading.nose[:, 1] / truth.span, NOD_SPANS, NOD_APART, NOD_WINDOW)
        found.append(match(seen, truth.nods, truth.reacting, NOD_WITHIN))
    delays = [delay / FPS for m in found for delay in m.delays]
    true = [m.true for m in found]
    return {
        "true": sum(true),
        "seen": sum(m.seen for m in found),
        "recall": share([m.matched for m in found], true),
        "recall_by_chance": share([m.chance for m in found], true),
        "precision": share([m.matched for m in found], [m.seen for m in found]),
        "delay_seconds": float(np.median(delays)) if delays else float("nan"),
    }


def _identity(truths: list[Truth], readings: list[Reading]) -> dict[str, Any]:
    """Distance to the own reference; whom the frames are taken for; a frame without a face is taken for nobody."""
    references = np.concatenate([t.reference.vectors for t in truths])
    distances, right, asked = [], [], []
    for index, reading in enumerate(readings):
        if np.isnan(references[index]).any():
            continue
        apart = np.linalg.norm(reading.vectors[:, None] - references[None], axis=-1)
        known = np.isfinite(apart[:, index])
        distances.append(float(apart[known, index].mean()) if known.any() else float("nan"))
        nearest = np.nanargmin(np.where(known[:, None], apart, 0.0), axis=1)
        right.append(int((known & (nearest == index)).sum()))
        asked.append(len(known))
    between = np.linalg.norm(references[:, None] - references[None], axis=-1)[np.triu_indices(len(references), 1)]
    others = between[np.isfinite(between)]
    return {
        "distance": mean(distances),
        "recognised": share(right, asked),
        "people": int(np.isfinite(references).all(axis=1).sum()),
        "other_people": {"median": float(np.median(others)), "least": float(others.min())} if len(others) else None,
    }


def _both(a: list[Reading], b: list[Reading], of: Callable[[Reading], float]) -> tuple[list[float], list[float]]:
    return [of(r) for r in a], [of(r) for r in b]


def _sharp(seen: NDArray[np.float64], real: NDArray[np.float64]) -> float:
    """Over the frames in which both are known."""
    known = np.isfinite(seen) & np.isfinite(real)
    return float(seen[known].mean() / real[known].mean()) if known.any() else float("nan")


def drift(readings: list[Reading], truths: list[Truth]) -> dict[str, Any]:
    """Slopes per minute over long videos, one value per video, and the levels of the first and last ten seconds."""
    slopes: dict[str, list[float]] = {"identity": [], "sharpness": [], "colour": []}
    ends: dict[str, list[tuple[float, float]]] = {name: [] for name in slopes}
    lost = []
    for reading, truth in zip(readings, truths, strict=True):
        start = truth.reference
        signals = {
            "identity": (np.linalg.norm(reading.vectors - start.vectors[0], axis=1), LONG_EVERY * LONG_EMBED_EVERY),
            "sharpness": (reading.sharp_face / start.sharp_face[0], LONG_EVERY),
            "colour": (np.linalg.norm(reading.colour - start.colour[0], axis=1), LONG_EVERY),
        }
        for name, (values, every) in signals.items():
            slopes[name].append(slope(np.arange(len(values)) * every / FPS / 60, values))
            some = max(1, 10 * FPS // every)
            ends[name].append((float(np.nanmean(values[:some])), float(np.nanmean(values[-some:]))))
        lost.append(float(np.isnan(reading.gap).mean()))
    return {
        "per_minute": {name: float(np.mean(values)) for name, values in slopes.items()},
        "each": slopes,
        "first_and_last_ten_seconds": {name: np.mean(values, axis=0).tolist() for name, values in ends.items()},
        "lost": float(np.mean(lost)),
        "frames": [len(reading.gap) * LONG_EVERY for reading in readings],
    }


# what is shown ---------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The figures as a table in Markdown."""

    def shown(figure: dict[str, float], percent: bool = False) -> str:
        if not np.isfinite(figure["value"]):
            return "-"
        scale, digits = (100, 0) if percent else (1, 2)
        value, low, high = (f"{figure[k] * scale:.{digits}f}" for k in ("value", "low", "high"))
        return f"{value}{' %' if percent else ''} [{low}, {high}]"

    def delay(seconds: float) -> str:
        return f"{seconds:+.2f} s" if np.isfinite(seconds) else "-"

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "face found": lambda f: f"{100 * f['found']['value']:.1f} %",
        "lips follow": lambda f: shown(f["lips"]),
        "of another clip": lambda f: shown(f["lips_swapped"]),
        "mouth while listening, of talking": lambda f: shown(f["listening_range"], percent=True),
        "of true talking": lambda f: shown(f["listening_range_of_true_talking"], percent=True),
        "nods: recall (chance)": lambda f: (
            f"{shown(f['nods']['recall'], percent=True)} ({100 * f['nods']['recall_by_chance']['value']:.0f} %)"
        ),
        "precision": lambda f: shown(f["nods"]["precision"], percent=True),
        "delay": lambda f: delay(f["nods"]["delay_seconds"]),
        "identity distance": lambda f: shown(f["identity"]["distance"]),
        "recognised": lambda f: f"{100 * f['identity']['recognised']['value']:.0f} %",
        "head motion": lambda f: shown(f["head_motion"]),
        "mouth motion": lambda f: shown(f["mouth_motion"]),
        "sharpness, face": lambda f: shown(f["sharp_face"]),
        "sharpness, mouth": lambda f: shown(f["sharp_mouth"]),
    }
    lines = ["| |" + "".join(f" {LABELS[row]} |" for row in rows), "|---|" + "---|" * len(rows)]
    lines += [f"| {name} |" + "".join(f" {cell(f)} |" for f in rows.values()) for name, cell in columns.items()]
    return "\n".join(lines)


def drift_table(drifts: dict[str, dict[str, Any]]) -> str:
    lines = ["| change per minute | identity distance | sharpness | colour (of 255) | frames without a face |"]
    lines.append("|---|---|---|---|---|")
    for row, found in drifts.items():
        values = [f"{found['per_minute'][name]:+.3f}" for name in ("identity", "sharpness", "colour")]
        lines.append(f"| {LABELS[row]} | {' | '.join(values)} | {100 * found['lost']:.1f} % |")
    return "\n".join(lines)


def moments(performance: Performance, talking: int = 5, listening: int = 3) -> list[int]:
    """Frames of one clip: open and closed mouths while talking, then heads that nod and rest while listening."""
    picks = []
    opening, pitch = performance.mouth_open, performance.head[:, 1]
    for state, signal, count in ((TALKING, opening, talking), (LISTENING, pitch, listening)):
        for number, part in enumerate(np.array_split(np.flatnonzero(performance.state == state), count)):
            if len(part):
                most = np.argmax if number % 2 == 0 else np.argmin
                picks.append(int(part[most(signal[part])]))
    return picks


def sheet(videos: Videos, rows: list[str], index: int, performance: Performance, path: Path, side: int = 176) -> None:
    """One clip after every stage: the reference, then moments of talking and of listening."""
    picks, band, gutter = moments(performance), 18, 92
    names = {LISTENING: "listening", TALKING: "talking"}
    labels = ["reference", *(f"{names[int(performance.state[p])]} {(p + 1) / FPS:.2f} s" for p in picks)]
    canvas = Image.new("RGB", (gutter + side * len(labels), band + side * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    for column, label in enumerate(labels):
        draw.text((gutter + column * side + 4, 3), label, fill="black", font_size=11)
    for line, row in enumerate(rows):
        draw.text((4, band + line * side + side // 2), LABELS[row], fill="black", font_size=13)
        video = videos.video(row, index)
        for column, picture in enumerate([videos.clips.window(index).frames[0], *(video[p] for p in picks)]):
            small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(small, (gutter + column * side, band + line * side))
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=90)


# the command -----------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `streamavatar train`, or of a model")
    parser.add_argument("--shards", type=Path, required=True, help="people that training has not seen")
    parser.add_argument("--landmarker", type=Path, required=True, help="MediaPipe's .task file")
    parser.add_argument("--out", type=Path, default=Path("stages"), help="where videos and readings are kept")
    parser.add_argument("--rows", help=f"comma-separated, of {','.join(WEIGHTS)}; all that are trained if left out")
    parser.add_argument("--clips", type=int, help="most clips")
    parser.add_argument("--solver-steps", type=int, help="of the teacher's ODE; the recipe's if left out")
    parser.add_argument("--guidance", type=float, help="of the teacher; the recipe's if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--long-clips", type=int, default=2, help="long videos for the drift; 0 for none")
    parser.add_argument("--long-frames", type=int, default=1500)
    parser.add_argument("--threads", type=int, help="of each worker of the engine")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="a picture of one clip after every stage")
    parser.add_argument(
        "--sheet-clip", type=int, help="which clip; by default the one that both talks and listens most"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    run = TrainedRun(args.run)
    rows = args.rows.split(",") if args.rows else [row for row in WEIGHTS if run.has(row)]
    if not args.rows and set(rows) & set(CAUSAL[:-1]):
        rows = [row for row in rows if row != "model"]  # it is one of these
    if unknown := set(rows) - set(WEIGHTS):
        raise UserError(f"unknown row {min(unknown)!r}; rows are {', '.join(WEIGHTS)}")
    if missing := [row for row in rows if not run.has(row)]:
        raise UserError(f"{args.run}: the stages that row {missing[0]!r} needs are not finished")
    settings = Settings(
        args.solver_steps or run.recipe.get("solver_steps", 0),
        run.recipe.get("guidance", 1.0) if args.guidance is None else args.guidance,
        args.seed,
    )
    clips = HeldOut(args.shards, run.data, args.clips, run.config)
    videos = Videos(clips, run, settings, args.out, args)
    try:
        report = measure(videos, rows, args)
    finally:
        videos.close()
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def measure(videos: Videos, rows: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Read and score every row; prints the tables."""
    clips = videos.clips
    indices = range(len(clips.entries))
    truths = []
    for index, entry in enumerate(clips.entries):
        performance = clips.performance(index).cut(1, clips.length(entry))
        truths.append(Truth(performance, videos.reference(index)))
        if np.isnan(truths[-1].span):
            raise UserError(f"clip {entry.key}: the landmarker sees no face in the reference picture; leave it out")
    balance = [min(t.talking.sum(), t.listening.sum()) for t in truths]
    most = [int(i) for i in np.argsort(balance, kind="stable")[::-1]]
    if args.sheet:
        chosen = most[0] if args.sheet_clip is None else args.sheet_clip
        sheet(videos, rows, chosen, truths[chosen].performance, args.sheet)
    real = [videos.reading("truth", index) for index in indices]
    found = {row: figures(truths, [videos.reading(row, index) for index in indices], real) for row in rows}
    print(table(found))
    if others := found[rows[0]]["identity"]["other_people"]:
        print(f"\nidentity distance of two people: median {others['median']:.2f}, least {others['least']:.2f}")
    long = most[: args.long_clips]
    drifts = {
        row: drift([videos.long(row, i, args.long_frames) for i in long], [truths[i] for i in long])
        for row in rows
        if row in CAUSAL and long
    }
    if drifts:
        print("\n" + drift_table(drifts))
    return {
        "run": str(args.run),
        "model": videos.run.config.name,
        "shards": str(args.shards),
        "trained_on": str(videos.run.data) if videos.run.data else None,
        "clips": [{"key": e.key, "identity": e.identity, "frames": clips.length(e)} for e in clips.entries],
        "settings": asdict(videos.settings),
        "rows": found,
        "drift": drifts,
        "machine": machine(),
        "commit": commit(),
    }


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
