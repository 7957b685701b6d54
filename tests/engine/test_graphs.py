"""Recorded passes against passes as they are: which recording is used when, and that a session stays the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from streamavatar.avatar import Avatar
from streamavatar.engine.graphs import Recorded, RecordedPasses
from streamavatar.engine.maker import ChunkMaker
from streamavatar.engine.telemetry import Telemetry
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.rollout import Noise, Passes, Sampler, make_chunk, prime

CHUNKS = 9
MakeConditions = Callable[..., Conditions]


class Recorder:
    """Stands for CUDA graphs: the same places for inputs and outputs, run again at every replay."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def __call__(self, work: Callable[[], Tensor]) -> Recorded:
        output = work().clone()
        number = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            output.copy_(work())

        return Recorded(replay, output)


def rolled_out(model: AvatarModel, conditions: Conditions, noise: Noise, recorder: Recorder | None) -> list[Tensor]:
    cache, transformer, out = model.ring_cache(), model.transformer, []
    sampler: Sampler = transformer
    with torch.inference_mode():
        prime(transformer, cache, conditions.latents(range(1)))
        ready = None
        if recorder is not None:
            ready = transformer.prepare(conditions.latents(range(1, 4)))
            passes = RecordedPasses(transformer, cache, recorder)
            passes.warm(noise(1, 0), torch.ones(1, 3), ready)
            sampler = passes
        for chunk in range(1, CHUNKS + 1):
            ready = transformer.prepare(conditions.latents(range(3 * chunk - 2, 3 * chunk + 1)), ready)
            out.append(make_chunk(sampler, cache, chunk, ready, noise, Passes.of(model.config)))
    return out


@pytest.mark.parametrize("sink", ["first_chunk", "reference", "none"])
def test_replayed_passes_change_nothing(
    make_model: Callable[..., AvatarModel],
    make_conditions: MakeConditions,
    make_noise: Callable[..., Noise],
    sink: str,
) -> None:
    model = make_model(transformer={"text_dim": 6}, context={"sink": sink}).eval().requires_grad_(False)
    conditions = make_conditions(model, 1 + 3 * CHUNKS)
    recorder = Recorder()
    plain, replayed = (rolled_out(model, conditions, make_noise(model), r) for r in (None, recorder))
    for a, b in zip(plain, replayed, strict=True):
        assert torch.equal(a, b)
    # One recording per slot; of the chunks that see a full ring, each in turn, three passes each.
    assert len(recorder.replays) == model.positions.slots
    full = CHUNKS - sum(len(model.positions.window(c).rolling) < model.positions.slots for c in range(1, CHUNKS + 1))
    if sink == "none":
        full -= sum(len(model.positions.window(c).sinks) > 0 for c in range(model.positions.slots, CHUNKS + 1))
    assert sum(recorder.replays) == 3 * full
    assert max(recorder.replays) - min(recorder.replays) <= 3


@pytest.mark.gpu
def test_a_session_with_graphs_equals_one_without(tiny: Avatar, face: np.ndarray) -> None:
    model = tiny.model.cuda()
    made = []
    for graphs in (False, True):
        rng = np.random.default_rng(0)
        maker = ChunkMaker(model, face, 0, Telemetry(), graphs=graphs)
        for chunk in range(1, CHUNKS + 1):
            samples = rng.standard_normal(len(maker.heard_ticks(chunk)) * 640).astype(np.float32)
            made.append(maker.transform(chunk, samples, samples))
    for a, b in zip(made[:CHUNKS], made[CHUNKS:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.gpu
def test_a_pass_does_not_wait_for_the_gpu(tiny: Avatar, face: np.ndarray) -> None:
    maker = ChunkMaker(tiny.model.cuda(), face, 0, Telemetry())
    samples = np.zeros(len(maker.heard_ticks(1)) * 640, np.float32)
    maker.transform(1, samples, samples)
    torch.cuda.set_sync_debug_mode("error")
    try:
        maker.transform(2, samples, samples)
    finally:
        torch.cuda.set_sync_debug_mode("default")
