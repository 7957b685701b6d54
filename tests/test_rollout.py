"""Making chunks: which pass gives the output, which gives the context, and where gradients flow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions, Transformer
from streamavatar.rollout import Noise, Passes, make_chunk, make_forced, make_sequence, prime, read_chunks

Model = Callable[..., AvatarModel]
MakeConditions = Callable[..., Conditions]
MakeClip = Callable[..., Tensor]
MakeNoise = Callable[..., Noise]

SIGMAS = (1.0, 0.7, 0.4)
KINDS: dict[str, dict[str, Any]] = {
    "velocity": {},
    "sample": {"prediction": "sample"},
    "residual": {"prediction": "sample", "residual": True, "reference_channels": 8},
}


def block_causal(latents: int, tokens: int, chunk_latents: int) -> Tensor:
    """[T*N, T*N], True where the key's chunk is not later than the query's."""
    chunk = torch.tensor([0, *(1 + k // chunk_latents for k in range(latents - 1))]).repeat_interleave(tokens)
    return chunk[:, None] >= chunk[None]


def levels(chunks: list[float], chunk_latents: int = 3) -> Tensor:
    """Sigma [1, T] of a clip: the clean reference, then a level per chunk."""
    return torch.tensor([[0.0, *(level for level in chunks for _ in range(chunk_latents))]])


class Watch:
    """Counts the forward passes of a model and notes which kept gradients."""

    def __init__(self, model: Transformer) -> None:
        self.grads: list[bool] = []
        model.register_forward_pre_hook(lambda *_: self.grads.append(torch.is_grad_enabled()))


# equivalence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cache", ["ring", "tape"])
def test_masked_forward_equals_chunks_through_a_cache(
    kind: str, cache: str, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model(transformer={**KINDS[kind], "text_dim": 6}, context={"rapr": False, "ring_latents": 15})
    conditions, x, sigma = make_conditions(model, 13), make_clip(model, 13), levels([1.0, 0.3, 0.7, 0.5])
    mask = block_causal(13, model.config.geometry.tokens_per_latent, 3)
    kv = model.ring_cache() if cache == "ring" else model.tape_cache()
    with torch.no_grad():
        whole = model.transformer.sample(x, sigma, conditions, mask=mask)
        chunked = read_chunks(model.transformer, kv, x, sigma, conditions, 3)
        free = model.transformer.sample(x, sigma, conditions)
    torch.testing.assert_close(chunked, whole[:, :, 1:], atol=1e-5, rtol=0)
    assert (free[:, :, 1:] - chunked).abs().max() > 1e-3  # the mask was of consequence


def test_a_masked_forward_equals_a_rollout(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    """One-pass chunks, whose context is their own noise: a single forward makes them all."""
    model = make_model(context={"rapr": False, "ring_latents": 15})
    conditions, noise = make_conditions(model, 13), make_noise(model)
    mask = block_causal(13, model.config.geometry.tokens_per_latent, 3)
    x = torch.cat((conditions.reference, *(noise(chunk, 0) for chunk in range(1, 5))), dim=2)
    with torch.no_grad():
        whole = model.transformer.sample(x, levels([1.0] * 4), conditions, mask=mask)
        sequence = make_sequence(model.transformer, model.ring_cache(), conditions, noise, Passes((1.0,)), 3)
        torch.testing.assert_close(torch.cat(list(sequence), dim=2), whole[:, :, 1:], atol=1e-5, rtol=0)


def test_later_chunks_do_not_reach_back(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model()
    conditions, x, sigma = make_conditions(model, 13), make_clip(model, 13), levels([0.5] * 4)
    other = x.clone()
    other[:, :, 10:] += 1
    with torch.no_grad():
        a, b = (read_chunks(model.transformer, model.tape_cache(), z, sigma, conditions, 3) for z in (x, other))
    assert torch.equal(a[:, :, :9], b[:, :, :9])
    assert not torch.equal(a[:, :, 9:], b[:, :, 9:])


# gradients -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach", [False, True])
def test_gradients_with_activation_checkpointing(
    detach: bool, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    """Over six chunks, so that the window rolls while the backward pass recomputes the blocks."""
    model = make_model(transformer={"text_dim": 6})
    conditions, sigma = make_conditions(model, 19, batch=2), levels([1.0, 0.3, 0.7, 0.5, 1.0, 0.2]).expand(2, -1)

    def gradients(recompute: bool) -> dict[str, Tensor]:
        model.transformer.checkpoint_blocks = recompute
        model.zero_grad()
        x = make_clip(model, 19, batch=2).requires_grad_()
        cache = model.tape_cache(detach=detach)
        estimate = read_chunks(model.transformer, cache, x, sigma, conditions, 3)
        estimate.square().mean().backward()
        named = {name: p.grad.clone() for name, p in model.transformer.named_parameters() if p.grad is not None}
        assert x.grad is not None
        return {**named, "x": x.grad}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys() == {*dict(model.transformer.named_parameters()), "x"}
    for name, value in plain.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(recomputed[name], value, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("recompute", [False, True])
def test_detach_stops_gradients_at_chunk_borders(
    recompute: bool, make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip
) -> None:
    model = make_model()
    model.transformer.checkpoint_blocks = recompute
    conditions, sigma = make_conditions(model, 10), levels([0.5] * 3)

    def reach(detach: bool) -> list[bool]:
        x = make_clip(model, 10).requires_grad_()
        cache = model.tape_cache(detach=detach)
        read_chunks(model.transformer, cache, x, sigma, conditions, 3)[:, :, 6:].sum().backward()
        assert x.grad is not None
        return [bool(x.grad[:, :, span].any()) for span in (slice(0, 1), slice(1, 4), slice(4, 7), slice(7, 10))]

    assert reach(detach=False) == [True, True, True, True]
    assert reach(detach=True) == [False, False, False, True]


@pytest.mark.parametrize("exit_step", [0, 1, 2, None])
def test_gradient_in_the_exit_pass_alone(
    exit_step: int | None, make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, cache = make_conditions(model, 4), model.tape_cache()
    prime(model.transformer, cache, conditions.latents(range(1)))
    watch = Watch(model.transformer)
    passes = Passes(SIGMAS, exit_step=exit_step, gradient=True)
    out = make_chunk(model.transformer, cache, 1, conditions.latents(range(1, 4)), make_noise(model), passes)
    expected = 2 if exit_step is None else exit_step
    assert watch.grads == [step == expected for step in range(3)]
    out.sum().backward()
    for name, parameter in model.transformer.named_parameters():
        assert parameter.grad is not None, name


def test_no_gradient_unless_asked(make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise) -> None:
    model = make_model()
    watch = Watch(model.transformer)
    sequence = make_sequence(
        model.transformer, model.tape_cache(), make_conditions(model, 7), make_noise(model), Passes(SIGMAS), 3
    )
    assert not any(chunk.requires_grad for chunk in sequence)
    assert watch.grads == [False] * 7


# which pass is what --------------------------------------------------------------------------------


def chunks_of(
    model: AvatarModel, conditions: Conditions, noise: Noise, *passes: Passes, detach: bool = True
) -> list[Tensor]:
    """Chunks 1, 2, ... each made with its own passes."""
    cache = model.tape_cache(detach=detach)
    prime(model.transformer, cache, conditions.latents(range(1)))
    out = []
    for chunk, how in enumerate(passes, start=1):
        span = model.config.geometry.chunk_span(chunk)
        out.append(make_chunk(model.transformer, cache, chunk, conditions.latents(span), noise, how).detach())
    return out


def test_passes_step_by_step(make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise) -> None:
    """The sampler written out: estimate, noise to the next level with fresh noise, estimate."""
    model = make_model(transformer={"prediction": "sample"})
    conditions, noise = make_conditions(model, 4), make_noise(model)
    (made,) = chunks_of(model, conditions, noise, Passes(SIGMAS))
    cache = model.tape_cache()
    prime(model.transformer, cache, conditions.latents(range(1)))
    x, part = noise(1, 0), conditions.latents(range(1, 4))
    with torch.no_grad():
        for step, level in enumerate(SIGMAS):
            estimate = model.transformer(x, torch.full((1, 3), 1000 * level), part, cache.view(1))
            if step < 2:
                x = (1 - SIGMAS[step + 1]) * estimate + SIGMAS[step + 1] * noise(1, step + 1)
    torch.testing.assert_close(made, estimate, atol=1e-6, rtol=0)


def test_the_exit_step_changes_the_output_but_not_the_context(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, noise, full = make_conditions(model, 7), make_noise(model), Passes(SIGMAS)
    last = chunks_of(model, conditions, noise, full, full)
    for exit_step in (0, 1):
        early = chunks_of(model, conditions, noise, replace(full, exit_step=exit_step, gradient=True), full)
        assert not torch.equal(early[0], last[0])
        assert torch.equal(early[1], last[1])
    assert torch.equal(chunks_of(model, conditions, noise, replace(full, exit_step=2))[0], last[0])


def test_context_comes_from_the_last_pass(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    """A chunk whose last pass had another input leaves another context."""
    model = make_model()
    conditions, noise = make_conditions(model, 7), make_noise(model)

    def other(chunk: int, step: int) -> Tensor:
        return noise(chunk, step) + (1.0 if (chunk, step) == (1, 2) else 0.0)

    first, second = Passes(SIGMAS, exit_step=1), Passes(SIGMAS)
    a, b = (chunks_of(model, conditions, n, first, second) for n in (noise, other))
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


def test_clean_context_costs_one_more_pass(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, noise = make_conditions(model, 7), make_noise(model)
    noisy, clean = Passes(SIGMAS, "last_noisy"), Passes(SIGMAS, "clean")
    watch = Watch(model.transformer)
    a = chunks_of(model, conditions, noise, noisy, noisy)
    assert len(watch.grads) == 1 + 2 * 3
    b = chunks_of(model, conditions, noise, clean, clean)
    assert len(watch.grads) == 1 + 2 * 3 + 1 + 2 * 4
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


def test_clean_context_is_that_of_the_finished_chunk(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, noise = make_conditions(model, 7), make_noise(model)
    first, second = chunks_of(model, conditions, noise, Passes((1.0,), "clean"), Passes((1.0,), "clean"))
    x = torch.cat((conditions.reference, first, noise(2, 0)), dim=2)
    with torch.no_grad():
        read = read_chunks(model.transformer, model.tape_cache(), x, levels([0.0, 1.0]), conditions, 3)
    assert torch.equal(read[:, :, 3:], second)


def test_the_same_noise_makes_the_same_chunks(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, passes = make_conditions(model, 10), Passes.of(model.config)
    a, b, c = (
        torch.cat(
            list(
                make_sequence(model.transformer, model.tape_cache(), conditions, make_noise(model, seed=s), passes, 3)
            ),
            dim=2,
        )
        for s in (5, 5, 6)
    )
    assert a.shape == (1, 8, 9, 4, 6)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_sequences_side_by_side_do_not_mix(
    make_model: Model, make_conditions: MakeConditions, make_noise: MakeNoise
) -> None:
    model = make_model()
    conditions, noise = make_conditions(model, 10, batch=2), make_noise(model, batch=2)
    both = list(make_sequence(model.transformer, model.ring_cache(2), conditions, noise, Passes(SIGMAS), 3))
    one = replace(
        conditions, talk=conditions.talk[1:], listen=conditions.listen[1:], reference=conditions.reference[1:]
    )
    alone = make_sequence(model.transformer, model.ring_cache(), one, lambda c, s: noise(c, s)[1:], Passes(SIGMAS), 3)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[1:], b, atol=1e-5, rtol=0)


def test_passes_of_a_model(make_model: Model) -> None:
    model = make_model(context={"cache_mode": "clean"})
    assert Passes.of(model.config) == Passes((1.0, 0.757, 0.522), "clean")


def test_teacher_forcing_makes_every_chunk_after_the_true_ones(
    make_model: Model, make_conditions: MakeConditions, make_clip: MakeClip, make_noise: MakeNoise
) -> None:
    """Each chunk equals the one made after priming and reading the true chunks before it, one at a time."""
    model = make_model(context={"cache_mode": "clean"})
    conditions, clip = make_conditions(model, 16), make_clip(model, 16)
    clip[:, :, :1] = conditions.reference
    passes = Passes(SIGMAS, "clean")
    noise = make_noise(model)
    forced = list(make_forced(model.transformer, model.tape_cache(), clip, conditions, noise, passes, 3))
    assert len(forced) == 5
    for chunk in range(1, 6):
        cache = model.tape_cache()
        before = 1 + 3 * (chunk - 1)
        given, seen = clip[:, :, :before], conditions.latents(range(before))
        if before == 1:
            prime(model.transformer, cache, conditions.latents(range(1)))
        else:
            read_chunks(model.transformer, cache, given, torch.zeros(1, before), seen, 3)
        own = conditions.latents(range(before, before + 3))
        expected = make_chunk(model.transformer, cache, chunk, own, noise, passes)
        torch.testing.assert_close(forced[chunk - 1], expected, atol=1e-6, rtol=0)
