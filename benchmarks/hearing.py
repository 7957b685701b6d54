"""What does a sound encoder say of the mouth, for speech that it has never heard?

Ridge regression reads the true mouth from the features of five frames. It is fitted on some dialogues and tested on
others; r is the correlation with the true opening over all frames, and while the lane talks. "moved" is the mean square
distance of features to those of the model given first, as a share of their variance: what was trained to read those
understands others the less, the farther they are.

    pip install -e '.[train,voices]'
    python benchmarks/hearing.py src/streamavatar/assets/models/people-256 runs/default/audio.safetensors --out speech
"""

from __future__ import annotations

import argparse
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from streamavatar.data.prepare import make_speech
from streamavatar.errors import UserError
from streamavatar.models.audio import AFTER, BEFORE, AudioEncoder, activity
from streamavatar.models.avatar import AvatarModel

RIDGE = 1e-3


def features(encoder: AudioEncoder, lanes: Tensor) -> Tensor:
    """Of five frames, [N, F, 5 * feature_dim]."""
    with torch.no_grad():
        found = torch.cat([encoder(lane[None]) for lane in lanes])
    return found.unfold(1, BEFORE + 1 + AFTER, 1).transpose(2, 3).flatten(2)


def reader(x: Tensor, y: Tensor) -> Tensor:
    """Ridge regression with a constant, [features + 1, targets]."""
    x = torch.cat((x, torch.ones(len(x), 1)), dim=1).double()
    products = x.t() @ x
    return torch.linalg.solve(
        products + RIDGE * products.diagonal().mean() * torch.eye(len(products)), x.t() @ y.double()
    )


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("encoders", type=Path, nargs="*", help="audio.safetensors of runs of the same sizes")
    parser.add_argument("--out", type=Path, required=True, help="where the spoken dialogues are kept")
    parser.add_argument("--dialogues", type=int, default=24)
    parser.add_argument("--held", type=int, default=6, help="of these, to be tested on")
    parser.add_argument("--seed", type=int, default=901)
    args = parser.parse_args()
    if not 0 < args.held < args.dialogues:
        raise UserError("--held has to be between 1 and one less than --dialogues")
    encoder = AvatarModel.load(args.model).audio.encoder
    if not isinstance(encoder, AudioEncoder):
        raise UserError(f"{args.model}: hears with wav2vec 2.0, which this project does not train")
    lanes, targets = make_speech(
        args.out, seed=args.seed, dialogues=args.dialogues, seconds=60, varied=True, fps=25, workers=2,
        tell=lambda done, total: print(f"{done} of {total} dialogues", end="\r"),
    )  # fmt: skip
    lead, tested = encoder.history + BEFORE, 2 * args.held
    targets = targets[:, lead : targets.shape[1] - AFTER]
    talking = activity(lanes, encoder.frame_samples)[:, lead : lanes.shape[1] // encoder.frame_samples - AFTER] > 0
    print("| encoder | opening, r | while talking | visemes, mean square error | moved |\n|---|---|---|---|---|")
    first: Tensor | None = None
    for path in (args.model, *args.encoders):
        if path != args.model:
            encoder = deepcopy(encoder)
            encoder.load_state_dict(load_file(path))
        found = features(encoder, lanes)
        first = found if first is None else first
        moved = float((found - first).square().mean() / first.var((0, 1)).mean())
        weights = reader(found[tested:].flatten(0, 1), targets[tested:].flatten(0, 1))
        read = found[:tested].double() @ weights[:-1] + weights[-1]
        truth = targets[:tested]
        while_talking = [
            correlation(a[t], b[t]) for a, b, t in zip(read[..., 15], truth[..., 15], talking[:tested], strict=True)
        ]
        visemes = float((read[..., :15] - truth[..., :15]).square().mean())
        print(
            f"| {path} | {correlation(read[..., 15].flatten(), truth[..., 15].flatten()):.3f} "
            f"| {sum(while_talking) / len(while_talking):.3f} | {visemes:.4f} | {moved:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
