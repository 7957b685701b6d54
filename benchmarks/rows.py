"""The same held-out clips after every stage of training: truth, codec alone, teacher, students, and what was exported.

Every video shows frames 1, 2, ... of its clip, made from frame 0 as the reference picture. The teacher is solved in
windows as long as those it was trained on, laid end to end; the students run through the engine as at run time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from instruments import Frames, decode, round_trip
from streamavatar.avatar import Avatar
from streamavatar.config import FORMAT, FlowCodecConfig, ModelConfig
from streamavatar.data.augment import in_place
from streamavatar.data.latents import LatentSet
from streamavatar.data.prepare import clip_latents
from streamavatar.data.reader import ShardSet, Window, held_out
from streamavatar.data.shards import Entry, read_manifest
from streamavatar.engine import run_lanes
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER
from streamavatar.models.avatar import AvatarModel
from streamavatar.ops.precision import half_is_fast
from streamavatar.seeds import seed_for
from streamavatar.synth.performance import Performance
from streamavatar.training.methods.ode import trajectories

WEIGHTS = {
    "truth": None, "codec": None, "teacher": "teacher", "ode": "student", "sid": "sid", "adversarial": "adversarial",
    "model": None,
}  # fmt: skip
"""Rows in order, and the part of the run folder that makes each."""
CAUSAL = ("ode", "sid", "adversarial", "model")
RATE = 16000


class HeldOut:
    """Whole clips of people that a run has not been trained on.

    Args:
        folder: of shards.
        trained_on: the run's own folder of shards; clips of people that training has seen are left out.
        limit: most clips.
        model: clips are cut to whole latents after the reference, and faces are put where its codec wants them.

    Raises:
        UserError: nobody is left, or the folder is no good.
    """

    def __init__(self, folder: Path, trained_on: Path | None, limit: int | None, model: ModelConfig) -> None:
        self.shards, self.stride = ShardSet(folder), model.geometry.temporal_stride
        self.face = model.codec.face if isinstance(model.codec, FlowCodecConfig) else ()
        manifest = read_manifest(folder)
        self.digest = "".join((*(manifest[name]["sha256"] for name in sorted(manifest)), str(self.face or "")))
        seen: set[str] = set()
        if trained_on is not None:
            clips = (clip for line in read_manifest(trained_on).values() for clip in line["clips"])
            seen = {clip["identity"] for clip in clips if not held_out(clip["identity"])}
        self.entries = [entry for entry in self.shards.entries if entry.identity not in seen][:limit]
        if len(self.entries) < 2:
            raise UserError(f"{folder}: at least two clips of people that training has not seen are needed")
        self.window = lru_cache(maxsize=2)(self._window)

    def _window(self, index: int) -> Window:
        """Frames 0 .. 4n of a clip, and `AFTER` more."""
        entry = self.entries[index]
        window = self.shards.window(entry, 0, self.length(entry) + 1 + AFTER)
        return in_place(window, self.face) if self.face else window

    def performance(self, index: int) -> Performance:
        """True motion of a whole clip, without decoding its pictures."""
        truth = self.shards.truth(self.entries[index])
        return Performance(**{f.name: truth[f.name] for f in fields(Performance)})

    def length(self, entry: Entry) -> int:
        """Frames of a clip's videos."""
        return (entry.frames - 1 - AFTER) // self.stride * self.stride


@dataclass(frozen=True)
class Settings:
    """How the teacher's ODE is solved, and the seed of all noise."""

    solver_steps: int
    guidance: float
    seed: int = 0


class TrainedRun:
    """A folder of `streamavatar train`, or a model folder alone; read and never written.

    Raises:
        UserError: it is neither.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe: dict[str, Any] = {}
        self.exported = folder if (folder / "config.json").exists() else folder / "model"
        if self.exported == folder:
            self.config = AvatarModel.load(folder).config
            return
        try:
            self.recipe = json.loads((folder / "recipe.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: neither a run of `streamavatar train` nor a model folder ({error})") from error
        text = json.dumps({"format": FORMAT, **self.recipe["model"]})
        self.config = ModelConfig.from_json(text, source=str(folder / "recipe.json"))

    @property
    def data(self) -> Path | None:
        """The shards that it was trained on, if they are still there."""
        found = Path(self.recipe.get("data") or "")
        return found if read_manifest(found) else None

    def path(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"

    def files(self, row: str) -> list[Path]:
        """What a row is made from."""
        if row == "truth":
            return []
        if row == "model" or not self.recipe:
            return [self.exported / "config.json", self.exported / "model.safetensors"]
        return [self.path(part) for part in (WEIGHTS[row], "codec") if part]

    def has(self, row: str) -> bool:
        """Whether a row can be made: the stages that it needs are finished."""
        made_here = bool(self.recipe) or row in ("truth", "codec", "model")
        return made_here and all(path.exists() for path in self.files(row))

    def model(self, row: str) -> AvatarModel:
        """The model of a row, with the trained codec."""
        if row == "model" or not self.recipe:
            return AvatarModel.load(self.exported)
        model = AvatarModel(self.config)
        if part := WEIGHTS[row]:
            model.load_state_dict(load_file(self.path(part)))
        model.codec.load_state_dict(load_file(self.path("codec")))
        return model.eval().requires_grad_(False)

    def digest(self, row: str, settings: Settings) -> str:
        """Changes with everything that a row's videos depend on, but for the clips."""
        if row == "truth":
            return ""
        found = hashlib.sha256(json.dumps(asdict(settings)).encode() if row != "codec" else b"")
        for path in self.files(row):
            found.update(path.read_bytes())
        return found.hexdigest()


class Maker:
    """Makes the videos of one row.

    Args:
        run, row, settings: what makes them.
        scratch: where the students' model folder is written.
        threads: of each worker of the engine.
    """

    def __init__(self, run: TrainedRun, row: str, settings: Settings, scratch: Path, threads: int | None) -> None:
        self.row, self.settings, self.window = row, settings, run.recipe.get("window", 0)
        self.avatar: Avatar | None = None
        self.model: AvatarModel | None = None
        if row in CAUSAL:
            run.model(row).save(scratch)  # what is exported, and loaded as a user loads it
            self.avatar = Avatar.load(scratch, threads=threads)
        elif row != "truth":
            self.model = run.model(row)

    def video(self, clip: Window, index: int) -> Frames:
        """Frames 1 .. 4n of a clip."""
        picture, truth = clip.frames[0], clip.frames[1 : len(clip.frames) - AFTER]
        if self.avatar is not None:
            # A session's first frame follows the picture and hears the lanes' first tick: it is the clip's frame 0.
            lanes = {"agent": clip.agent, "user": clip.user}
            return np.concatenate(list(self.rollout(picture, lanes, 1 + len(truth), index)))[1:]
        if self.model is None:
            return truth
        if self.row == "codec":
            return round_trip(self.model.codec, truth, picture)
        return self._solve(self.model, clip, index)

    def rollout(self, picture: Frames, lanes: dict[str, np.ndarray], frames: int, index: int) -> Iterator[Frames]:
        """Frames of a session, chunk by chunk."""
        assert self.avatar is not None
        session = self.avatar.session(picture, seed=seed_for(self.settings.seed, "stages", index))
        for output in run_lanes(session, lanes, frames / self.avatar.config.geometry.fps):
            yield output.frames

    def _solve(self, model: AvatarModel, clip: Window, index: int) -> Frames:
        """The teacher's ODE over windows laid end to end; the last overlaps the one before, which wins."""
        latents = clip_latents(model, clip)
        total, size = latents.latents.shape[2] - 1, self.window - 1
        if total < size:
            raise UserError(f"clip {clip.key} is shorter than a window of the teacher; give longer clips")
        starts = [min(first, total - size) + 1 for first in range(0, total, size)]
        whole = LatentSet(
            **{name: value.expand(len(starts), *value.shape[1:]) for name, value in vars(latents).items()}
        )
        windows = whole.take(torch.arange(len(starts))).crop(torch.tensor(starts), self.window)
        generator = torch.Generator().manual_seed(seed_for(self.settings.seed, "teacher", index))
        noise = torch.randn(windows.latents.shape, generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half_is_fast(torch.device("cpu"))):
            _, ends = trajectories(model, windows, noise, self.settings.solver_steps, self.settings.guidance)
        parts = [ends[:-1, :, 1:], ends[-1:, :, 1 + size - (total - (len(starts) - 1) * size) :]]
        joined = torch.cat([window for part in parts for window in part], dim=1)[None]
        return decode(model.codec, joined.float(), clip.frames[0])
