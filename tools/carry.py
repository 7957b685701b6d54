"""Carries a training run to a machine that takes and gives back little, and home again.

    python tools/carry.py pack RUN FOLDER            RUN/clips as 8-bit numbers, a seventh of their size
    python tools/carry.py unpack FOLDER RUN          and back
    python tools/carry.py loss RUN PART CLIPS        loss of trained weights on clips that were not trained on
    python tools/carry.py leave RUN PART FOLDER      what training changed, in float16, in pieces of at most 15 MiB
    python tools/carry.py fetch FOLDER PART RUN      and back into a run folder

RUN is a run folder of `streamavatar train`, PART one of its stages: teacher, student, sid, adversarial; `start` is what
the run begins with. `tools/train_gpu.sh` is made of these.
"""

from __future__ import annotations

import bz2
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from dacite import Config, from_dict
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor

from streamavatar.data.latents import LatentSet
from streamavatar.draws import Draws
from streamavatar.errors import UserError
from streamavatar.models.avatar import AvatarModel
from streamavatar.training.methods.teacher import TeacherMethod, conditions_of
from streamavatar.training.recipe import Recipe
from streamavatar.training.stages import Run

STEPS = {"latents": 0.1, "talk": 1 / 32, "listen": 1 / 32, "mouth": 1 / 127, "opening": 1 / 127, "state": 1.0}
"""What one unit of the 8-bit numbers is. A latent's error is 0.03, of a standard deviation of 0.3 and more."""
PIECE = 15 * 2**20
WINDOWS, BATCH = 1024, 128
"""How many windows of clips a loss is the mean of, and how many at once."""


def pack(run: Path, folder: Path) -> None:
    """Shards of clips as `*.bz2`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((run / "clips").glob("*.safetensors"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(_pack, paths, [folder / f"{path.stem}.bz2" for path in paths]))


def _pack(source: Path, target: Path) -> None:
    values = {name: (v.float() / STEPS[name]).round().clamp(-127, 127).to(torch.int8) for name, v in _shard(source)}
    # Latents differ little from those before them, and less so if each cell's follow one another.
    z = values["latents"].permute(0, 1, 3, 4, 2)
    values["latents"] = torch.cat((z[..., :1], z[..., 1:] - z[..., :-1]), dim=-1).contiguous()  # modulo 256
    target.write_bytes(bz2.compress(save({name: v.contiguous() for name, v in values.items()})))


def _shard(path: Path) -> list[tuple[str, Tensor]]:
    found = load_file(path)
    return [(field.name, found[field.name]) for field in fields(LatentSet)]


def unpack(folder: Path, run: Path) -> None:
    """`*.bz2` as shards of clips."""
    paths = sorted(folder.glob("*.bz2"))
    with ThreadPoolExecutor() as pool:
        list(pool.map(_unpack, paths, [run / "clips" / f"{path.stem}.safetensors" for path in paths]))


def _unpack(source: Path, target: Path) -> None:
    values = load(bz2.decompress(source.read_bytes()))
    steps = values["latents"].numpy()
    values["latents"] = torch.from_numpy(np.cumsum(steps, axis=-1, dtype=np.int8)).permute(0, 1, 4, 2, 3)
    whole = {n: v if n == "state" else (v.float() * STEPS[n]).half() for n, v in values.items()}
    LatentSet(**whole).save(target)


def open_run(folder: Path) -> Run:
    """A run as its `recipe.json` says."""
    said = json.loads((folder / "recipe.json").read_text())
    recipe = from_dict(Recipe, said, Config(cast=[tuple]))
    return Run(recipe, folder, lambda stage, done, total, text: None)


def weights(run: Run, part: str) -> AvatarModel:
    return run.build() if part == "start" else run.build(part)


def loss(run: Path, part: str, held: Path) -> None:
    """Print what a teacher's error is of that of a face that keeps still, on the same windows each time.

    `loss` and `vs_still` are training's; `mouth` counts the mouth's cells alone, made of nothing but noise.
    """
    opened = open_run(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe, model = opened.recipe, weights(opened, part)
    if channels := recipe.model.transformer.reference_channels:
        model.transformer.reference_scale.copy_(model.codec.latent_spread[:channels])
    clips = LatentSet.load(held)
    method = TeacherMethod(model, clips, recipe.window, replace(recipe.teaching, sound_noise=0.0, look_noise=0.0))
    method.to(device)
    found = []
    with torch.no_grad(), device:
        for seed in range(WINDOWS // BATCH):
            values = method.loss(0, BATCH, Draws.seeded(seed, device))
            values["mouth"] = _mouth(model, method.clips.draw(BATCH, recipe.window, Draws.seeded(seed, device)), seed)
            found.append(values)
    means = {name: float(torch.stack([v[name] for v in found]).mean()) for name in ("loss", "vs_still", "mouth")}
    print(f"{run.name} {part}: " + " ".join(f"{name} {value:.4f}" for name, value in means.items()))


def _mouth(model: AvatarModel, clips: LatentSet, seed: int) -> Tensor:
    z = clips.latents
    noise = torch.randn(z.shape, generator=torch.Generator(z.device).manual_seed(seed))
    x = torch.cat((z[:, :, :1], noise[:, :, 1:]), dim=2)
    sigma = torch.ones(z.shape[0], z.shape[2])
    sigma[:, 0] = 0
    estimate = model.transformer.sample(x, sigma, conditions_of(model, clips))
    error, still = ((clips.mouth[:, None] * (each - z).square()).sum() for each in (estimate, z[:, :, :1]))
    return error / still


def leave(run: Path, part: str, folder: Path) -> None:
    """What of a part is not as the run began, as `PART-*.safetensors`."""
    opened = open_run(run)
    before, after = (weights(opened, name).state_dict() for name in ("start", part))
    pieces: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in after.items():
        if torch.equal(value, before[name]):
            continue
        half = value.half().contiguous()
        if size + half.nbytes > PIECE:
            pieces.append({})
            size = 0
        pieces[-1][name] = half
        size += half.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    for number, piece in enumerate(pieces):
        save_file(piece, folder / f"{part}-{number}.safetensors")


def fetch(folder: Path, part: str, run: Path) -> None:
    """Pieces as a run folder's weights."""
    opened = open_run(run)
    paths = sorted(folder.glob(f"{part}-*.safetensors"))
    if not paths:
        raise UserError(f"{folder}: no pieces of {part}")
    model = opened.build()
    changed = {name: value.float() for path in paths for name, value in load_file(path).items()}
    model.load_state_dict(model.state_dict() | changed)
    opened.keep(model, part)


COMMANDS: dict[str, tuple[Callable[..., None], tuple[Callable[[str], object], ...]]] = {
    "pack": (pack, (Path, Path)),
    "unpack": (unpack, (Path, Path)),
    "loss": (loss, (Path, str, Path)),
    "leave": (leave, (Path, str, Path)),
    "fetch": (fetch, (Path, str, Path)),
}


def main() -> int:
    name, *words = sys.argv[1:] or [""]
    if name not in COMMANDS or len(words) != len(COMMANDS[name][1]):
        print(__doc__)
        return 2
    work, kinds = COMMANDS[name]
    try:
        work(*(kind(word) for kind, word in zip(kinds, words, strict=True)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
