"""Scores of benchmarks on signals whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from scores import correlation, follows, match, mean, pairs, peaks, ratio, reach, share, slope, wander

RNG = np.random.default_rng(0)


def bumps(at: list[int], frames: int = 200, height: float = 5.0) -> NDArray[np.float64]:
    """Nods: smooth bumps of 15 frames that peak at the given frames, on a slow sway."""
    signal = 1.5 * np.sin(np.arange(frames) / 40)
    for middle in at:
        signal[middle - 7 : middle + 8] += height * np.sin(np.pi * np.arange(1, 16) / 16) ** 2
    return signal


# signals ---------------------------------------------------------------------------------------------


def test_correlation() -> None:
    truth = RNG.normal(size=100)
    assert correlation(3 * truth + 1, truth) == pytest.approx(1)
    assert correlation(-truth, truth) == pytest.approx(-1)
    assert abs(correlation(RNG.normal(size=10000), RNG.normal(size=10000))) < 0.05
    assert np.isnan(correlation(np.zeros(100), truth))
    assert np.isnan(correlation(truth[:12], truth[:12]))


def test_correlation_passes_over_lost_frames() -> None:
    truth = RNG.normal(size=100)
    seen = truth.copy()
    seen[::3] = np.nan
    assert correlation(seen, truth) == pytest.approx(1)


def test_lost_frames_and_still_mouths_count_against_a_video() -> None:
    truth = RNG.normal(size=200)
    seen = truth.copy()
    seen[::2] = np.nan
    assert 0.6 < follows(seen, truth) < 0.8
    assert follows(np.full(200, 0.3), truth) == 0
    assert follows(np.full(200, np.nan), truth) == 0
    assert np.isnan(follows(seen, np.zeros(200)))
    assert np.isnan(follows(seen[:5], truth[:5]))


def test_reach_and_wander_do_not_see_lost_frames() -> None:
    values = np.append(np.linspace(0, 1, 1001), np.nan)
    assert reach(values) == pytest.approx(0.9)
    places = RNG.normal(size=(5000, 2)) * (3, 1) + 50
    places[7] = np.nan
    assert wander(places) == pytest.approx(4, rel=0.05)
    assert np.isnan(reach(values[:5]))
    assert np.isnan(wander(places[:5]))


def test_slope_is_per_unit_of_time() -> None:
    minutes = np.arange(1500) / 25 / 60
    values = 0.4 * minutes + 0.2
    values[100:200] = np.nan
    assert slope(minutes, values) == pytest.approx(0.4)


# events ----------------------------------------------------------------------------------------------


def test_peaks_are_nods_and_not_sway() -> None:
    pytest.importorskip("scipy", reason="needs the extra `synth`")
    signal = bumps([40, 90, 150])
    assert peaks(signal, 2, 10, 26) == pytest.approx([40, 90, 150], abs=1)
    assert len(peaks(bumps([]), 2, 10, 26)) == 0
    assert len(peaks(bumps([40], height=1), 2, 10, 26)) == 0
    signal[[39, 41, 42]] = np.nan
    assert peaks(signal, 2, 10, 26) == pytest.approx([40, 90, 150], abs=2)
    assert len(peaks(np.full(50, np.nan), 2, 10, 26)) == 0


def test_each_event_is_used_once_and_the_closest_pair_first() -> None:
    assert pairs([10, 14], [13], within=10) == [(14, 13)]
    assert sorted(pairs([10, 50], [12, 51], within=10)) == [(10, 12), (50, 51)]
    assert pairs([10], [21], within=10) == []
    assert pairs([], [3], within=10) == []


def test_recall_precision_and_delay() -> None:
    frames = np.ones(300, bool)
    found = match([12, 62, 200, 230], [10, 60, 120], frames, within=10)
    assert (found.seen, found.true, found.matched, sorted(found.delays)) == (4, 3, 2, [2, 2])


def test_only_frames_that_count_have_events() -> None:
    frames = np.ones(300, bool)
    frames[:100] = False
    found = match([12, 150], [10, 151], frames, within=10)
    assert (found.seen, found.true, found.delays) == (1, 1, (-1,))


def test_chance_is_what_events_at_random_places_match() -> None:
    frames = np.ones(210, bool)
    assert match([100], [50], frames, within=10).chance == pytest.approx(21 / 210)
    everywhere = match(range(0, 210, 10), [50, 120], frames, within=10)
    assert everywhere.chance == pytest.approx(2)
    assert match([], [50], frames, within=10).chance == 0


# over clips ------------------------------------------------------------------------------------------


def test_mean_leaves_out_clips_without_a_value() -> None:
    found = mean([0.5, 0.7, float("nan")])
    assert found == {"value": pytest.approx(0.6), "low": pytest.approx(0.5), "high": pytest.approx(0.7), "clips": 2}
    assert mean([])["clips"] == 0


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    intervals = [mean(list(rng.normal(3, 1, 40))) for _ in range(100)]
    assert 88 <= sum(found["low"] < 3 < found["high"] for found in intervals) <= 100


def test_share_weighs_clips_by_their_size() -> None:
    found = share([1, 9], [2, 10])
    assert found["value"] == pytest.approx(10 / 12)
    assert found["low"] == pytest.approx(0.5)
    assert found["high"] == pytest.approx(0.9)
    assert np.isnan(share([0], [0])["value"])


def test_ratio_of_amplitudes() -> None:
    """Half the movement gives one half, also where other clips listen than talk."""
    real = [RNG.normal(size=(150, 2)) for _ in range(8)]
    made = [0.5 * places for places in real]
    found = ratio([wander(p) for p in made], [wander(p) for p in real])
    assert found["value"] == pytest.approx(0.5)
    assert found["low"] <= 0.5 <= found["high"]
    nan = float("nan")
    assert ratio([0.1, nan, 0.3, nan], [nan, 1.0, nan, 3.0])["value"] == pytest.approx(0.1)
    assert ratio([nan], [1.0])["clips"] == 0
