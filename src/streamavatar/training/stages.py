"""A recipe's stages in order, each resumable and each skipped once done.

The run folder holds one folder per stage and `model/`, the model as it stands; `streamavatar train RECIPE` walks the
stages, and a kill at any point costs no more than the steps since the last checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from streamavatar.data.latents import LatentSet
from streamavatar.data.prepare import Footage, make_frames, make_latents, make_speech
from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.ops.precision import half_is_fast
from streamavatar.provenance import commit, machine
from streamavatar.seeds import seed_for
from streamavatar.training.journal import Screen
from streamavatar.training.lora import adapted, halve, merge
from streamavatar.training.methods.adversarial import AdversarialMethod
from streamavatar.training.methods.audio import AudioMethod
from streamavatar.training.methods.codec import decoder_method, fit, to_unit
from streamavatar.training.methods.ode import OdeMethod, trajectories
from streamavatar.training.methods.sid import SidMethod
from streamavatar.training.methods.teacher import TeacherMethod, TeachingConfig
from streamavatar.training.parallel import World, gather
from streamavatar.training.recipe import Recipe
from streamavatar.training.trainer import HOW, Method, Progress, TrainConfig, Trainer

DONE = "DONE"
Made = TypeVar("Made")


class Run:
    """One training run in a folder.

    Args:
        recipe: what to do.
        folder: where; made if missing.
        progress: told about every step.
        world: the ranks that train together, and where this one's networks are.

    Raises:
        UserError: if the folder holds a run of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, progress: Progress, world: World | None = None) -> None:
        self.recipe, self.folder, self.progress, self.world = recipe, folder, progress, world or World()
        self.device = self.world.device
        self.world.once(self._claim)

    def _claim(self) -> None:
        """Write down whose folder this is."""
        folder = self.folder
        record, ours = folder / "recipe.json", asdict(self.recipe)
        found = json.loads(record.read_text()) if record.exists() else ours
        if changed := [
            key
            for key in ("model", "latents", "window", "lora", "seed")
            if json.dumps(found.get(key, ours[key])) != json.dumps(ours[key])
        ]:
            raise UserError(
                f"{folder}: holds a run with another {changed[0]}; give another --out, or delete the folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        temporary = record.with_suffix(".partial")
        temporary.write_text(json.dumps(ours, indent=2) + "\n")
        temporary.replace(record)

    def done(self, name: str) -> bool:
        """Whether a stage has finished with these settings."""
        mark = self.folder / name / DONE
        return mark.exists() and mark.read_text() == self._settings(name)

    def run(self, names: list[str]) -> None:
        """Run the named stages that are not done; what builds on one that runs, finished or not, starts anew."""
        for name in names:
            stage = STAGES[name]
            if stage.transformer and self.recipe.teacher is None:
                continue  # that of `start` is kept
            if self.world.once(partial(self.done, name)):
                continue
            self.world.once(partial(self._forget, _builders_on(name)))
            if stage.shared:
                stage.work(self)
                self.world.meet()
            else:
                self.world.once(partial(stage.work, self._alone()))
            self.world.once(partial(self.mark, name))

    def _alone(self) -> Run:
        """The same run on this rank alone."""
        run = copy(self)
        run.world = World(self.device)
        return run

    def _forget(self, stages: set[str]) -> None:
        for name in stages:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def mark(self, name: str) -> None:
        """Record that a stage has finished with these settings."""
        (self.folder / name).mkdir(exist_ok=True)
        (self.folder / name / DONE).write_text(self._settings(name))

    def _settings(self, name: str) -> str:
        """The part of the recipe that a stage depends on, as text."""
        whole, keys = asdict(self.recipe), ("model", "seed", *STAGES[name].settings)
        return json.dumps({key: _without(whole[key], HOW) for key in keys}, indent=2) + "\n"

    # shared by the stages --------------------------------------------------------------------------

    def weights(self, part: str) -> Path:
        return self.folder / f"{part}.safetensors"

    def keep(self, module: nn.Module, part: str) -> None:
        values = gather(module, self.world)
        self.world.once(lambda: save_file(values, self.weights(part)))

    def restore(self, module: nn.Module, part: str) -> None:
        if not self.weights(part).exists():
            raise UserError(
                f"{self.weights(part)} is missing; run the stages before this one first (leave out --stages)"
            )
        module.load_state_dict(load_file(self.weights(part)))

    def build(self, *parts: str) -> AvatarModel:
        """A model with the parts trained so far: "audio", "linear", "codec", "teacher", "student"."""
        model = self._initial()
        for part in parts:
            target = {"audio": model.audio.encoder, "linear": model.codec, "codec": model.codec}.get(part, model)
            self.restore(target, part)
        return model

    def base(self, config: TrainConfig | None = None) -> AvatarModel | None:
        """The teacher on which adapters are put, in the precision that `config` computes in; none without LoRA."""
        if not self.recipe.lora.rank:
            return None
        return self.frozen(config)

    def frozen(self, config: TrainConfig | None = None) -> AvatarModel:
        """The teacher, not to be trained, in the precision that `config` computes in."""
        model = self.build("teacher").requires_grad_(False)
        if config is not None and config.bf16 and half_is_fast(self.device):
            halve(model.transformer)
        return model

    def onto(self, base: AvatarModel | None, part: str) -> AvatarModel:
        """A network to train: "teacher", "student", "sid" or "adversarial"; adapters on `base` if there is one."""
        if base is None:
            return self.build(part)
        model = adapted(base, self.recipe.lora, seed_for(self.recipe.seed, "adapters"))
        if part != "teacher":
            self.restore(model, part)
        return model

    def _initial(self) -> AvatarModel:
        """The model that training begins with."""
        recipe = self.recipe
        if not recipe.start:
            if None in (recipe.audio, recipe.decoder, recipe.teacher):
                raise UserError(
                    "this recipe goes on from a model folder that `streamavatar assemble` makes: give it with "
                    "--set start=FOLDER"
                )
            torch.manual_seed(seed_for(recipe.seed, "initial weights"))
            return AvatarModel(recipe.model)
        model = AvatarModel.load(Path(recipe.start)).train().requires_grad_(True)
        for part in ("geometry", "transformer", "audio", "codec"):
            if getattr(model.config, part) != getattr(recipe.model, part):
                raise UserError(f"{recipe.start}: its {part} is not the recipe's; give a model of the same sizes")
        return model

    def shipped(self) -> str:
        """The part that holds the student to be exported, or "start"."""
        recipe = self.recipe
        if recipe.teacher is None:
            return "start"
        last = "adversarial" if recipe.adversarial else "sid" if recipe.sid else "student"
        return recipe.ships or last

    def train(self, method: Method, config: TrainConfig, stage: str) -> None:
        screen = self._screen() if config.sample_every else None
        about = {"recipe": asdict(self.recipe)}
        Trainer(method, config, self.folder / stage, self.progress, self.world, screen=screen, about=about).run()

    def _screen(self) -> Screen | None:
        """The codec as it is trained by now, and the first person of its data."""
        frames = self.folder / "linear" / "frames" / "frames-00000.npz"
        if not (frames.exists() and self.weights("codec").exists()):
            return None
        with np.load(frames) as loaded:
            picture = to_unit(loaded["frames"][0, :1])[None, :, 0].to(self.device)
        with torch.no_grad():
            return Screen(self.build("codec").codec.to(self.device), picture, self.recipe.model.geometry.fps)

    def prepared(self, make: Callable[[], Made]) -> Made:
        """Data that `make` writes, or finds written: the first rank makes it, then all have it."""
        if self.world.size > 1:
            self.world.once(lambda: bool(make()))
        return make()

    def tell(self, stage: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress(stage, done, total, "shards")


def audio_stage(run: Run) -> None:
    """Pretrain the audio encoder on synthesised dialogues."""
    recipe = run.recipe
    if recipe.audio is None:
        run.keep(run.build().audio.encoder, "audio")
        return
    spoken = run.prepared(
        lambda: make_speech(
            run.folder / "speech",
            seed=recipe.seed,
            dialogues=recipe.dialogues,
            seconds=recipe.dialogue_seconds,
            varied=recipe.varied_speech,
            fps=recipe.model.geometry.fps,
            workers=recipe.workers,
            tell=lambda done, total: run.progress("speech", done, total, "dialogues"),
        )
    )
    model = run.build()
    head_first, keep = (recipe.audio.warmup, recipe.keep_features) if recipe.start else (0, 0.0)
    method = AudioMethod(model.audio.encoder, *spoken, head_first=head_first, keep=keep)
    run.train(method, recipe.audio, "audio")
    run.keep(model.audio.encoder, "audio")


def _footage(run: Run) -> Footage:
    recipe = run.recipe
    return make_frames(
        run.folder / "linear" / "frames",
        recipe.model,
        seed=seed_for(recipe.seed, "codec"),
        clips=recipe.codec_clips,
        frames=recipe.frames,
        workers=recipe.workers,
        tell=run.tell("frames"),
        source=recipe.source,
    )


def linear_stage(run: Run) -> None:
    """Render clips for the codec and fit its linear part, unless it is given."""
    model = run.build()
    if run.recipe.decoder is not None:
        footage = _footage(run)
        if not run.recipe.start:
            fit(model.codec, footage, seed=run.recipe.seed)
    run.keep(model.codec, "linear")


def decoder_stage(run: Run) -> None:
    """Train the codec's decoder."""
    model = run.build("linear")
    if run.recipe.decoder is not None:
        run.train(decoder_method(model.codec, run.prepared(partial(_footage, run))), run.recipe.decoder, "decoder")
    run.keep(model.codec, "codec")


def clips_stage(run: Run) -> None:
    """Render the training clips to latents and features."""
    recipe, geometry = run.recipe, run.recipe.model.geometry
    if recipe.source is None and geometry.height != geometry.width:
        raise UserError(
            f"puppets are drawn as squares, and this model's pictures are {geometry.width}x{geometry.height}: "
            "give a folder of shards with --set data=FOLDER"
        )
    source = run.folder / "clips-model"
    if recipe.audio is None and recipe.decoder is None:
        source = Path(recipe.start)
        run.build()  # refuses a folder of other sizes
    else:
        run.build("audio", "linear").save(source, torch.float32)
    make_latents(
        run.folder / "clips",
        source,
        seed=seed_for(recipe.seed, "train"),
        clips=recipe.clips,
        frames=recipe.frames,
        workers=recipe.workers,
        tell=run.tell("clips"),
        source=recipe.source,
    )


def teacher_stage(run: Run) -> None:
    """Train the bidirectional teacher."""
    recipe, model = run.recipe, run.build("audio", "linear")
    assert recipe.teacher is not None
    if channels := recipe.model.transformer.reference_channels:
        model.transformer.reference_scale.copy_(model.codec.latent_spread[:channels])
    run.keep(_teach(run, model, recipe.teaching, recipe.teacher, "teacher"), "teacher")


def _teach(run: Run, model: AvatarModel, teaching: TeachingConfig, config: TrainConfig, stage: str) -> AvatarModel:
    """Train a teacher from a model; with LoRA its adapters are merged in the end."""
    if run.recipe.lora.rank:
        model = adapted(model, run.recipe.lora, seed_for(run.recipe.seed, "adapters"))
    clips = LatentSet.load(run.folder / "clips")
    run.train(TeacherMethod(model, clips, run.recipe.window, teaching), config, stage)
    return merge(model)


def pairs_stage(run: Run) -> None:
    """Solve the teacher's ODE for some clips and keep the points that the student starts from."""
    recipe, folder = run.recipe, run.folder / "pairs"
    folder.mkdir(exist_ok=True)
    device = run.device
    model = run.build("teacher")
    if recipe.causal is not None:
        _teach(run, model, replace(recipe.teaching, causal=True), recipe.causal, "causal")
    model.requires_grad_(False).to(device)
    clips = LatentSet.load(run.folder / "clips")
    size = 32
    for start in range(0, recipe.pairs, size)[run.world.rank :: run.world.size]:
        path = folder / f"pairs-{start:06d}.safetensors"
        if not path.exists():
            chosen = torch.arange(start, min(start + size, recipe.pairs)) % len(clips)
            generator = torch.Generator().manual_seed(seed_for(recipe.seed, "pairs", start))
            starts = torch.randint(1, recipe.latents - recipe.window + 2, chosen.shape, generator=generator)
            batch = clips.take(chosen).crop(starts, recipe.window).to(device)
            noise = torch.randn(batch.latents.shape, generator=generator).to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half_is_fast(device)):
                points, ends = (
                    x.cpu()
                    for x in trajectories(
                        model, batch, noise, recipe.solver_steps, recipe.guidance, causal=recipe.causal is not None
                    )
                )
            temporary = path.with_suffix(".partial")
            save_file({"points": points.half(), "ends": ends.half(), "clips": chosen, "starts": starts}, temporary)
            temporary.rename(path)
        run.progress("pairs", min(start + size, recipe.pairs), recipe.pairs, "clips")


def student_stage(run: Run) -> None:
    """Start the causal student from the teacher by ODE regression."""
    model = run.onto(run.base(run.recipe.student), "teacher")
    shards = [load_file(path) for path in sorted((run.folder / "pairs").glob("*.safetensors"))]
    pairs = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    chosen = LatentSet.load(run.folder / "clips").take(pairs["clips"]).crop(pairs["starts"], run.recipe.window)
    method = OdeMethod(model, chosen, pairs["points"], pairs["ends"], run.recipe.teaching.mouth)
    run.train(method, run.recipe.student, "student")
    run.keep(model, "student")


def sid_stage(run: Run) -> None:
    """Distil the student on its own rollouts; nothing to do for recipes without it."""
    recipe = run.recipe
    if recipe.sid is None:
        return
    real = run.frozen(recipe.sid)
    base = real if recipe.lora.rank else None
    student, fake = run.onto(base, "student"), run.onto(base, "teacher")
    clips = LatentSet.load(run.folder / "clips")
    run.train(SidMethod(student, real, fake, clips, recipe.window, recipe.distillation), recipe.sid, "sid")
    run.keep(student, "sid")


def adversarial_stage(run: Run) -> None:
    """Refine the student against real clips; nothing to do for recipes without it."""
    recipe = run.recipe
    if recipe.adversarial is None:
        return
    base = run.base(recipe.adversarial)
    student, judge = run.onto(base, "sid" if recipe.sid else "student"), run.onto(base, "teacher")
    method = AdversarialMethod(student, judge, LatentSet.load(run.folder / "clips"), recipe.window, recipe.refinement)
    run.train(method, recipe.adversarial, "adversarial")
    run.keep(student, "adversarial")


def export_stage(run: Run) -> None:
    """Write the model folder that run time loads, with a card that says how it was made."""
    shipped = run.shipped()
    model = run.build("audio") if shipped == "start" else merge(run.onto(run.base(), shipped))
    run.restore(model.codec, "codec")
    model.save(run.folder / "model")
    card = {
        "name": run.recipe.model.name,
        "student": shipped,
        "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()},
        "stages": {name: _record(run.folder / name) for name in STAGES if (run.folder / name / DONE).exists()},
        "machine": machine(),
        "commit": commit(),
    }
    if run.recipe.start and (before := Path(run.recipe.start) / "card.json").exists():
        card["start"] = json.loads(before.read_text())
    (run.folder / "model" / "card.json").write_text(json.dumps(card, indent=2) + "\n")


def _record(folder: Path) -> dict[str, object]:
    """Settings of a finished stage, and where its training ended."""
    log = folder / "log.jsonl"
    settings = {k: v for k, v in json.loads((folder / DONE).read_text()).items() if k != "model"}
    return {"settings": settings, "last": json.loads(log.read_text().splitlines()[-1]) if log.exists() else None}


@dataclass(frozen=True)
class Stage:
    """One step of a recipe: what it does, the stages it builds on, and the settings it depends on.

    All ranks do what is `shared`; the others wait while the first does the rest. Stages that train the `transformer`
    are passed over in recipes without a teacher.
    """

    work: Callable[[Run], None]
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    shared: bool = False
    transformer: bool = False


STAGES = {
    "audio": Stage(
        audio_stage,
        (),
        ("start", "audio", "dialogues", "dialogue_seconds", "varied_speech", "keep_features"),
        shared=True,
    ),
    "linear": Stage(linear_stage, (), ("start", "codec_clips", "latents", "data")),
    "clips": Stage(clips_stage, ("audio", "linear"), ("clips", "latents", "data"), transformer=True),
    "decoder": Stage(decoder_stage, ("linear",), ("decoder",), shared=True),
    "teacher": Stage(
        teacher_stage, ("clips",), ("start", "teacher", "teaching", "lora", "window"), shared=True, transformer=True
    ),
    "pairs": Stage(
        pairs_stage,
        ("teacher",),
        ("pairs", "causal", "window", "solver_steps", "guidance"),
        shared=True,
        transformer=True,
    ),
    "student": Stage(student_stage, ("pairs",), ("student",), shared=True, transformer=True),
    "sid": Stage(sid_stage, ("student",), ("sid", "distillation"), shared=True, transformer=True),
    "adversarial": Stage(
        adversarial_stage, ("sid", "clips"), ("adversarial", "refinement"), shared=True, transformer=True
    ),
    "export": Stage(export_stage, ("adversarial", "decoder"), ("ships",)),
}


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    return {k: v for k, v in value.items() if k not in keys} if isinstance(value, dict) else value


def _builders_on(name: str) -> set[str]:
    """The stages that build on `name`, directly or through others."""
    direct = {later for later, stage in STAGES.items() if name in stage.needs}
    return direct.union(*map(_builders_on, direct))
