"""RAPR and windows, as integers (paper, 2.2-2.4 and 7.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from streamavatar.config import ContextConfig
from streamavatar.geometry import Geometry
from streamavatar.positions import Positions

LAST = 10_000
READING_A = Positions(Geometry(), ContextConfig())
READING_B = Positions(Geometry(), ContextConfig(cap=10, cap_on="start", ring_includes_current=False))

chunks = st.integers(1, LAST) | st.integers(1, 12)


@st.composite
def any_positions(draw: st.DrawFn) -> Positions:
    """Positions of any chunk length, ring, cap and sink."""
    chunk = draw(st.integers(1, 5))
    context = ContextConfig(
        sink=draw(st.sampled_from(["none", "reference", "first_chunk"])),
        ring_latents=chunk * draw(st.integers(1, 5)),
        ring_includes_current=draw(st.booleans()),
        cap=draw(st.integers(chunk, 60)),
        cap_on=draw(st.sampled_from(["end", "start"])),
    )
    return Positions(Geometry(chunk_latents=chunk), context)


def pinned(positions: Positions) -> int:
    """Latents that are sinks."""
    return {"none": 0, "reference": 1, "first_chunk": 1 + positions.geometry.chunk_latents}[positions.context.sink]


def literal_window(positions: Positions, chunk: int) -> list[int]:
    """The paper's index of every latent that a chunk attends to, oldest first."""
    return [p for other in sorted(positions.window(chunk).chunks) for p in positions.literal_keys(chunk, other)]


# RAPR ----------------------------------------------------------------------------------------------


@given(any_positions(), chunks)
def test_before_the_cap_it_is_plain_rope(positions: Positions, chunk: int) -> None:
    span = positions.geometry.chunk_span
    assume(span(chunk)[-1] <= positions.largest)
    assert positions.literal_query(chunk) == positions.query(chunk) == tuple(span(chunk))
    for other in positions.window(chunk).chunks:
        assert positions.literal_keys(chunk, other) == positions.keys(chunk, other) == tuple(span(other))


@given(any_positions(), chunks)
def test_rolling_keys_keep_their_distance(positions: Positions, chunk: int) -> None:
    for other in positions.window(chunk).rolling:
        shift = {
            t - p for t, p in zip(positions.geometry.chunk_span(chunk), positions.literal_query(chunk), strict=True)
        }
        moved = {
            j - p
            for j, p in zip(positions.geometry.chunk_span(other), positions.literal_keys(chunk, other), strict=True)
        }
        assert shift == moved == {positions.shift(chunk)}


@given(any_positions(), chunks)
def test_sinks_stay_and_their_distance_is_capped(positions: Positions, chunk: int) -> None:
    assume(positions.context.sink != "none")
    last = positions.geometry.chunk_span(chunk)[-1]
    assert positions.literal_keys(chunk, 0) == (0,)
    assert positions.query(chunk)[-1] - positions.keys(chunk, 0)[0] == min(last, positions.largest)


@given(any_positions(), chunks)
def test_both_forms_have_the_same_differences(positions: Positions, chunk: int) -> None:
    for other in positions.window(chunk).chunks:
        literal = [q - k for q in positions.literal_query(chunk) for k in positions.literal_keys(chunk, other)]
        engine = [q - k for q in positions.query(chunk) for k in positions.keys(chunk, other)]
        assert literal == engine


@given(any_positions(), chunks)
def test_indices_stay_between_zero_and_the_cap(positions: Positions, chunk: int) -> None:
    # A ring longer than the cap would reach below the reference; nobody would build that.
    assume(positions.largest + 1 >= positions.slots * positions.geometry.chunk_latents)
    window = literal_window(positions, chunk)
    if positions.context.sink == "none" and 0 in positions.window(chunk).chunks:
        window = window[1:]  # a reference that is no sink, about to leave
    assert min(window) >= 0
    assert max(window) == max(positions.literal_query(chunk)) <= positions.largest


@pytest.mark.parametrize("positions", [READING_A, READING_B], ids=["A", "B"])
def test_no_index_above_the_cap_in_80_minutes(positions: Positions) -> None:
    for chunk in range(1, LAST + 1):
        window = literal_window(positions, chunk)
        assert window[0] == 0
        assert window[-1] <= positions.largest


@given(any_positions(), chunks)
def test_windows_that_fit_under_the_cap_have_no_collision(positions: Positions, chunk: int) -> None:
    assume(positions.context.sink != "none")
    assume(positions.largest + 1 >= pinned(positions) + positions.slots * positions.geometry.chunk_latents)
    window = literal_window(positions, chunk)
    assert len(set(window)) == len(window)


@pytest.mark.parametrize(("positions", "size"), [(READING_A, 10), (READING_B, 13)], ids=["A", "B"])
def test_the_paper_s_windows_are_without_gap_or_collision(positions: Positions, size: int) -> None:
    for chunk in range(1, LAST + 1):
        expected = min(size, positions.geometry.chunk_span(chunk)[-1] + 1)
        assert literal_window(positions, chunk) == list(range(expected))


def test_reading_a_shifts_from_chunk_4_on() -> None:
    assert [READING_A.shift(chunk) for chunk in range(7)] == [0, 0, 0, 0, 3, 6, 9]
    assert READING_A.literal_query(4) == (7, 8, 9)
    assert READING_A.keys(5, 0) == (6,)
    assert READING_A.keys(5, 1) == (7, 8, 9)
    assert READING_A.keys(5, 4) == (10, 11, 12)


@given(any_positions(), chunks)
def test_without_rapr_nothing_moves(positions: Positions, chunk: int) -> None:
    plain = Positions(positions.geometry, replace(positions.context, rapr=False))
    assert plain.shift(chunk) == 0
    assert plain.window(chunk) == positions.window(chunk)
    for other in plain.window(chunk).chunks:
        assert plain.keys(chunk, other) == plain.literal_keys(chunk, other) == tuple(plain.geometry.chunk_span(other))


# windows -------------------------------------------------------------------------------------------


@given(any_positions(), chunks)
def test_sinks_are_always_there(positions: Positions, chunk: int) -> None:
    sinks = {"none": set(), "reference": {0}, "first_chunk": {0, 1}}[positions.context.sink]
    window = positions.window(chunk)
    assert sinks <= set(window.chunks)
    assert all(positions.is_sink(other) == (other in sinks) for other in window.chunks)


@given(any_positions(), chunks)
def test_rolling_chunks_are_the_newest_in_the_order_of_their_slots(positions: Positions, chunk: int) -> None:
    rolling = positions.window(chunk).rolling
    newest = range(max(positions.first_rolling, chunk - positions.slots + 1), chunk + 1)
    assert sorted(rolling) == list(newest)
    slots = [positions.slot(other) for other in rolling]
    assert slots == sorted(set(slots))
    assert all(0 <= slot < positions.slots for slot in slots)


@given(any_positions(), chunks)
def test_the_oldest_leaves_and_its_slot_is_taken(positions: Positions, chunk: int) -> None:
    before, after = set(positions.window(chunk).rolling), set(positions.window(chunk + 1).rolling)
    assert after - before == {chunk + 1} & set(range(positions.first_rolling, chunk + 2))
    gone = before - after
    if gone:
        assert gone == {min(before)}
        assert positions.slot(min(before)) == positions.slot(chunk + 1)


@given(any_positions(), chunks)
def test_a_full_window_has_a_constant_size(positions: Positions, chunk: int) -> None:
    assume(chunk >= positions.first_rolling + positions.slots)
    window = positions.window(chunk)
    assert len(window.rolling) == positions.slots
    assert len(window.sinks) == {"none": 0, "reference": 1, "first_chunk": 2}[positions.context.sink]


@given(any_positions())
def test_the_reference_sees_itself_and_the_first_chunk_sees_both(positions: Positions) -> None:
    assert positions.window(0).chunks == (0,)
    assert set(positions.window(1).chunks) == {0, 1}


def test_without_a_sink_the_reference_is_the_oldest_to_leave() -> None:
    positions = Positions(Geometry(), ContextConfig(sink="none"))
    assert [positions.window(chunk).chunks for chunk in range(5)] == [(0,), (0, 1), (0, 1, 2), (3, 2), (3, 4)]
