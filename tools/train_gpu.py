"""A slice of training on a GPU's machine that has no network and takes and gives back little.

    python tools/carry.py pack runs/people .carry               at home; then, on the GPU's machine:
    python tools/train_gpu.py figures --packed .carry --held .held --wheels .whl \
        --set start=MODEL --set audio=null --set decoder=null \
        --way "teacher.steps=4000" --way "teacher.steps=8000 teacher.weight_decay=0.1" --leave teacher,sid
    python tools/carry.py fetch figures sid runs/people          and at home again

Teachers of all ways train side by side, since a small network leaves most of a GPU idle; the one whose mouth is nearest
to the truth on clips that were not trained on goes on to the other stages. What happens is printed and kept in
`figures/log.txt`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Slice:
    """One slice: a working folder, the settings of all stages, and a log."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.began = options, time.monotonic()
        self.work = Path(tempfile.mkdtemp(prefix="streamavatar-slice-"))
        self.out: Path = options.out
        self.out.mkdir(parents=True, exist_ok=True)
        self.settings: list[str] = options.set
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}
        paths = [str(HERE.parent / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        if options.wheels:
            paths.append(str(self.work / "site"))
        self.environment["PYTHONPATH"] = os.pathsep.join(paths)

    def say(self, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        print(line, flush=True)
        with open(self.out / "log.txt", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    def do(self, *command: object) -> str:
        """Run Python on something; its last lines are said."""
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
            check=False,
            timeout=self.options.seconds,
        )
        last = [line for line in done.stdout.splitlines() if line.strip()][-12:]
        for line in last if done.returncode else last[-4:]:
            self.say("    " + line.rstrip())
        if done.returncode:
            raise SystemExit(f"exit status {done.returncode}: {' '.join(map(str, command))}")
        return done.stdout

    def carry(self, *words: object) -> str:
        return self.do(HERE / "carry.py", *words)

    def train(self, run: Path, stages: str, *settings: str) -> None:
        changes = [word for setting in (*self.settings, *settings) for word in ("--set", setting)]
        device = ["--device", self.options.device]
        words = ["-m", "streamavatar.cli", "train", self.options.recipe, "--out", run, "--stages", stages]
        self.do(*words, *device, *changes)

    def teacher(self, number: int, settings: list[str]) -> tuple[float, Path]:
        """A teacher of its own run; its loss on clips that were not trained on."""
        run = self.work / f"way-{number}"
        self.train(run, "audio,linear", *settings)
        shutil.copytree(self.work / "clips", run / "clips", copy_function=os.link)
        try:
            self.train(run, "teacher", *settings)
            said = self.carry("loss", run, "teacher", self.work / "held" / "clips")
        except subprocess.TimeoutExpired:
            return math.inf, run
        return float(said.split("mouth")[1].split()[0]), run

    def run(self) -> None:
        options = self.options
        if options.wheels:
            wheels = sorted(Path(options.wheels).glob("*.whl"))
            pip = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir"]
            self.do(*pip, "--target", self.work / "site", *wheels)
        for folder in options.packed:
            self.carry("unpack", folder, self.work)
        self.carry("unpack", options.held, self.work / "held")
        self.say(f"{len(list((self.work / 'clips').iterdir()))} shards of clips")
        ways = [way.split() for way in options.way] or [[]]
        with ThreadPoolExecutor(len(ways)) as pool:
            found = list(pool.map(self.teacher, range(len(ways)), ways))
        for way, (value, _) in zip(ways, found, strict=True):
            self.say(f"teacher {' '.join(way) or 'as the recipe has it'}: held-out error of the mouth {value:.4f}")
        if all(math.isinf(value) for value, _ in found):
            raise SystemExit("no teacher was ready in time")
        best = min(range(len(found)), key=lambda i: found[i][0])
        run = found[best][1]
        self.leave(run, "teacher")
        for stage in filter(None, options.stages.split(",")):
            self.train(run, stage, *ways[best])
            self.leave(run, stage)
        self.say("done")

    def leave(self, run: Path, stage: str) -> None:
        self.say(f"{stage} done")
        if stage in self.options.leave.split(","):
            self.carry("leave", run, stage, self.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for log and weights")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--packed", type=Path, action="append", required=True, help="packed clips; may be repeated")
    parser.add_argument("--held", type=Path, required=True, help="packed clips that are not trained on")
    parser.add_argument("--wheels", default="", help="folder of wheels for what Python lacks: dacite, soxr")
    parser.add_argument("--set", action="append", default=[], help="of all stages, as for `streamavatar train`")
    parser.add_argument("--way", action="append", default=[], help="settings of one teacher; repeat it to try several")
    parser.add_argument("--stages", default="pairs,student,sid", help="what is run after the teacher")
    parser.add_argument("--leave", default="teacher,sid", help="whose weights are left in the folder")
    parser.add_argument("--seconds", type=float, help="teachers that take longer are given up")
    parser.add_argument("--device", default="cuda")
    Slice(parser.parse_args()).run()


if __name__ == "__main__":
    main()
