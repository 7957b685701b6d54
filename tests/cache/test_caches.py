"""Both caches against the paper's literal form, and against each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamavatar.cache import KVCache, RingCache, TapeCache
from streamavatar.config import ContextConfig
from streamavatar.geometry import Geometry
from streamavatar.models.avatar import AvatarModel
from streamavatar.models.transformer import Conditions
from streamavatar.ops.attention import attention
from streamavatar.ops.rope import apply_rope, rope
from streamavatar.positions import Positions
from streamavatar.rollout import Noise, Passes, make_sequence
from streamavatar.seeds import seed_for

GRID, LAYERS, HEADS, HEAD_DIM, THETA = (2, 3), 2, 2, 32, 10000.0
Model = Callable[..., AvatarModel]


def ring_of(positions: Positions) -> RingCache:
    return RingCache(positions, GRID, layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, theta=THETA)


def tape_of(positions: Positions) -> TapeCache:
    return TapeCache(positions, GRID, HEAD_DIM, THETA)


def drawn(positions: Positions, chunk: int, layer: int) -> Tensor:
    """q, k and v of a chunk before RoPE, [3, 1, heads, N, head_dim]."""
    tokens = len(positions.geometry.chunk_span(chunk)) * GRID[0] * GRID[1]
    generator = torch.Generator().manual_seed(seed_for(0, "qkv", chunk, layer))
    return torch.randn(3, 1, HEADS, tokens, HEAD_DIM, generator=generator)


def turned(x: Tensor, times: tuple[int, ...]) -> Tensor:
    return apply_rope(x, rope(times, GRID, HEAD_DIM, THETA))


def through_cache(cache: KVCache, positions: Positions, chunk: int) -> list[Tensor]:
    """One pass of a chunk straight through a cache, without a network; the output of each layer."""
    view = cache.view(chunk)
    out = []
    for layer in range(LAYERS):
        q, k, v = drawn(positions, chunk, layer)
        out.append(attention(turned(q, view.times), *view.attend(layer, k, turned(k, view.times), v)))
    view.commit()
    return out


def literal(positions: Positions, chunk: int) -> list[Tensor]:
    """The paper's form: queries capped, rolling keys shifted along, sinks where they were."""
    out = []
    for layer in range(LAYERS):
        q = turned(drawn(positions, chunk, layer)[0], positions.literal_query(chunk))
        context = [
            (drawn(positions, c, layer), positions.literal_keys(chunk, c)) for c in positions.window(chunk).chunks
        ]
        keys = torch.cat([turned(qkv[1], times) for qkv, times in context], dim=2)
        out.append(attention(q, keys, torch.cat([qkv[2] for qkv, _ in context], dim=2)))
    return out


@pytest.mark.parametrize("make", [ring_of, tape_of], ids=["ring", "tape"])
def test_engine_form_equals_the_paper_s(make: Callable[[Positions], KVCache], context: ContextConfig) -> None:
    positions = Positions(Geometry(), context)
    cache = make(positions)
    for chunk in range(51):
        got = through_cache(cache, positions, chunk)
        if chunk in (0, 1, 2, 4, 50):
            for layer, expected in enumerate(literal(positions, chunk)):
                torch.testing.assert_close(got[layer], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [2, 4, 50, 100_000])
def test_engine_form_equals_the_paper_s_far_out(chunk: int, context: ContextConfig) -> None:
    """Chunks between the sinks and the window are left out: no later chunk would see them."""
    positions = Positions(Geometry(), context)
    ring = ring_of(positions)
    for before in sorted({0, 1} | set(positions.window(chunk).rolling)):
        got = through_cache(ring, positions, before)
    for layer, expected in enumerate(literal(positions, chunk)):
        torch.testing.assert_close(got[layer], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [2, 4, 50, 100_000])
def test_logits_of_both_forms_are_equal(chunk: int, context: ContextConfig) -> None:
    positions = Positions(Geometry(), context)
    for other in positions.window(chunk).chunks:
        q, k = drawn(positions, chunk, 0)[0], drawn(positions, other, 0)[1]
        engine = turned(q, positions.query(chunk)) @ turned(k, positions.keys(chunk, other)).mT
        paper = turned(q, positions.literal_query(chunk)) @ turned(k, positions.literal_keys(chunk, other)).mT
        torch.testing.assert_close(engine / HEAD_DIM**0.5, paper / HEAD_DIM**0.5, atol=1e-5, rtol=0)


def test_ring_equals_tape(
    context: ContextConfig,
    make_model: Model,
    make_conditions: Callable[..., Conditions],
    make_noise: Callable[..., Noise],
) -> None:
    """The engine's cache and training's give the same pictures, bit for bit, long after the ring has wrapped."""
    model = make_model(context=context)
    conditions, noise = make_conditions(model, 61, batch=2), make_noise(model, batch=2)
    passes = Passes((1.0, 0.5))
    with torch.no_grad():
        ring, tape = (
            list(make_sequence(model.transformer, cache, conditions, noise, passes, 3))
            for cache in (model.ring_cache(batch=2), model.tape_cache())
        )
    assert len(ring) == len(tape) == 20
    for chunk, (a, b) in enumerate(zip(ring, tape, strict=True), start=1):
        assert torch.equal(a, b), f"chunk {chunk}"


def test_the_context_matters(
    make_model: Model, make_conditions: Callable[..., Conditions], make_noise: Callable[..., Noise]
) -> None:
    """Contexts differ from each other from the chunk on where they should: the tests above compare something."""

    def sequence(**context: object) -> list[Tensor]:
        model = make_model(context=context)
        conditions, noise = make_conditions(model, 19), make_noise(model)
        with torch.no_grad():
            return list(make_sequence(model.transformer, model.tape_cache(), conditions, noise, Passes((1.0,)), 3))

    default = sequence()
    for other, first in ((sequence(rapr=False), 4), (sequence(sink="none"), 3), (sequence(ring_latents=3), 3)):
        same = [torch.equal(a, b) for a, b in zip(default, other, strict=True)]
        assert same.index(False) + 1 == first
        assert not any(same[first - 1 :])


def test_sinks_and_memory_stay_for_a_thousand_chunks(
    make_model: Model, make_conditions: Callable[..., Conditions], make_noise: Callable[..., Noise]
) -> None:
    model = make_model(transformer={"layers": 1, "dim": 16, "ffn_dim": 16})
    model.requires_grad_(False)
    cache, conditions = model.ring_cache(), make_conditions(model, 3001)
    storage = [t.untyped_storage() for t in (cache.keys, cache.values, cache.raw_sinks)]
    sizes = [(s.data_ptr(), s.nbytes()) for s in storage]
    sinks = slice(0, cache.span(2).start)
    assert sinks == slice(cache.span(0).start, cache.span(1).stop)
    with torch.inference_mode():
        for chunk, made in enumerate(
            make_sequence(model.transformer, cache, conditions, make_noise(model), Passes((1.0,)), 3), start=1
        ):
            assert bool(made.isfinite().all())
            if chunk == 1:
                first = [cache.raw_sinks.clone(), cache.values[..., sinks, :].clone()]
    assert chunk == 1000
    assert torch.equal(cache.raw_sinks, first[0])
    assert torch.equal(cache.values[..., sinks, :], first[1])
    storage = [t.untyped_storage() for t in (cache.keys, cache.values, cache.raw_sinks)]
    assert sizes == [(s.data_ptr(), s.nbytes()) for s in storage]
    table = rope(tuple(range(2991, 2995)), model.config.geometry.grid, 8, THETA)  # 3000 - 9 on from 0..3
    assert torch.equal(cache.keys[..., sinks, :], apply_rope(cache.raw_sinks[0], table)[None])


def test_tape_keeps_no_more_than_the_next_window() -> None:
    positions = Positions(Geometry(), ContextConfig())
    tape = tape_of(positions)
    for chunk in range(12):
        through_cache(tape, positions, chunk)
    assert sorted(tape._chunks) == [0, 1, 11]


def test_a_tape_s_view_records_once() -> None:
    """Activation checkpointing runs the layers again; whatever happens then is not the context."""
    positions = Positions(Geometry(), ContextConfig())
    once, twice = tape_of(positions), tape_of(positions)
    view = twice.view(0)
    for layer in range(LAYERS):
        _, k, v = drawn(positions, 0, layer)
        view.attend(layer, k, turned(k, view.times), v)
        view.attend(layer, v, k, k)
    view.commit()
    through_cache(once, positions, 0)
    for a, b in zip(*(through_cache(cache, positions, 1) for cache in (once, twice)), strict=True):
        assert torch.equal(a, b)


def test_slots_of_a_ring_do_not_overlap(context: ContextConfig) -> None:
    positions = Positions(Geometry(), context)
    ring = ring_of(positions)
    for chunk in (*range(12), 999):
        owners = positions.window(chunk).chunks
        tokens = [t for c in owners for t in range(ring.keys.shape[3])[ring.span(c)]]
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens)))
        assert tokens[-1] < ring.keys.shape[3]


def test_a_later_pass_overwrites_the_earlier(context: ContextConfig) -> None:
    positions = Positions(Geometry(), context)
    once, twice = ring_of(positions), ring_of(positions)
    for chunk in range(8):
        view = twice.view(chunk)
        for layer in range(LAYERS):
            noise = torch.randn_like(drawn(positions, chunk, layer)[0])
            view.attend(layer, noise, noise, noise)
        for a, b in zip(*(through_cache(cache, positions, chunk) for cache in (once, twice)), strict=True):
            assert torch.equal(a, b)


def test_a_ring_may_be_used_for_another_session(context: ContextConfig) -> None:
    positions = Positions(Geometry(), context)
    used, fresh = ring_of(positions), ring_of(positions)
    for chunk in range(9):
        through_cache(used, positions, chunk)
    for chunk in range(9):
        for a, b in zip(*(through_cache(cache, positions, chunk) for cache in (used, fresh)), strict=True):
            assert torch.equal(a, b)
