"""Scores of signals that were read off video, against the truth: correlation, events, range, slope; with intervals.

Everything here is arithmetic on arrays, one value per frame; a frame in which nothing could be read is nan. Intervals
are 95 % bootstrap intervals over clips, since the frames of a clip are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Signal = NDArray[np.floating]
ENOUGH = 13
"""Fewer frames than these say nothing."""
DRAWS = 2000


def correlation(seen: Signal, truth: Signal) -> float:
    """Over the frames that are known in both; nan where they are too few, or either does not move."""
    known = np.isfinite(seen) & np.isfinite(truth)
    a, b = seen[known].astype(float), truth[known].astype(float)
    if len(a) < ENOUGH or a.std() < 1e-6 or b.std() < 1e-6:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def follows(seen: Signal, truth: Signal) -> float:
    """Correlation in which a failure counts as one: lost frames stand at the median, what does not move scores 0.

    nan only where the truth has nothing to follow.
    """
    if len(truth) < ENOUGH or np.std(truth) < 1e-6:
        return float("nan")
    known = seen[np.isfinite(seen)]
    filled = np.where(np.isfinite(seen), seen, np.median(known) if len(known) else 0.0)
    found = correlation(filled, truth)
    return found if np.isfinite(found) else 0.0


def reach(values: Signal) -> float:
    """From the 5th to the 95th percentile; nan where too few are known."""
    known = values[np.isfinite(values)]
    return float(np.percentile(known, 95) - np.percentile(known, 5)) if len(known) >= ENOUGH else float("nan")


def wander(places: Signal) -> float:
    """How much a point [F, 2] moves: the standard deviations of its coordinates, added."""
    known = places[np.isfinite(places).all(axis=1)]
    return float(known.std(axis=0).sum()) if len(known) >= ENOUGH else float("nan")


def slope(times: ArrayLike, values: Signal) -> float:
    """Least-squares slope over the known values, per unit of `times`."""
    known = np.isfinite(values)
    return float(np.polyfit(np.asarray(times, float)[known], values[known], 1)[0]) if known.sum() > 2 else float("nan")


# events ----------------------------------------------------------------------------------------------


def peaks(signal: Signal, prominence: float, apart: int, within: int) -> NDArray[np.int64]:
    """Frames at which a signal peaks.

    Args:
        prominence: how far it must rise above what is around it, within a window of `within` frames.
        apart: fewest frames between two peaks.
    """
    from scipy.signal import find_peaks

    known = np.flatnonzero(np.isfinite(signal))
    if len(known) < 3:
        return np.empty(0, np.int64)
    filled = np.interp(np.arange(len(signal)), known, signal[known])
    found, _ = find_peaks(filled, prominence=prominence, distance=apart, wlen=within)
    return np.asarray(found, np.int64)


@dataclass(frozen=True)
class Matches:
    """Events seen and true in one clip, how many belong together, and how much later (frames) the seen ones were.

    `chance` is how many would belong together if the seen events were moved along the clip at random.
    """

    seen: int
    true: int
    delays: tuple[int, ...]
    chance: float

    @property
    def matched(self) -> int:
        return len(self.delays)


def pairs(seen: ArrayLike, true: ArrayLike, within: int) -> list[tuple[int, int]]:
    """Seen and true events that belong together: at most `within` frames apart, closest first, each used once."""
    seen, true = np.asarray(seen, int), np.asarray(true, int)
    candidates = [(abs(int(s - t)), i, j) for i, s in enumerate(seen) for j, t in enumerate(true)]
    used_seen: set[int] = set()
    used_true: set[int] = set()
    found = []
    for apart, i, j in sorted(candidates):
        if apart <= within and i not in used_seen and j not in used_true:
            used_seen.add(i)
            used_true.add(j)
            found.append((int(seen[i]), int(true[j])))
    return found


def match(seen: ArrayLike, true: ArrayLike, frames: NDArray[np.bool_], within: int) -> Matches:
    """Compare events in those frames of a clip that count.

    Args:
        seen, true: frames of the events.
        frames: which frames count [F].
        within: see :func:`pairs`.
    """
    where = np.cumsum(frames) - 1  # place among the frames that count
    seen, true = ([int(f) for f in np.asarray(events, int) if frames[f]] for events in (seen, true))
    delays = tuple(s - t for s, t in pairs(seen, true, within))
    count = int(frames.sum())
    moved = [len(pairs((where[seen] + by) % count, where[true], within)) for by in range(count)] if seen else []
    return Matches(len(seen), len(true), delays, float(np.mean(moved)) if moved else 0.0)


# over clips ------------------------------------------------------------------------------------------


def mean(values: Sequence[float]) -> dict[str, float]:
    """The mean of the known values, with its interval."""
    known = np.array([v for v in values if np.isfinite(v)])
    return share(known, np.ones(len(known)))


def share(parts: ArrayLike, wholes: ArrayLike) -> dict[str, float]:
    """The sum of `parts` over the sum of `wholes`, one of each per clip, with its interval."""
    over, under = np.asarray(parts, float), np.asarray(wholes, float)
    known = np.isfinite(over) & np.isfinite(under)
    over, under = over[known], under[known]
    if not under.sum():
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "clips": 0}
    picks = np.random.default_rng(0).integers(len(over), size=(DRAWS, len(over)))
    sums = under[picks].sum(axis=1)
    drawn = over[picks].sum(axis=1)[sums > 0] / sums[sums > 0]
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": float(over.sum() / under.sum()), "low": float(low), "high": float(high), "clips": len(over)}


def ratio(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, float]:
    """The mean of `parts` over that of `wholes`; these may be of different clips, nan where a clip has none."""
    over, under = np.asarray(parts, float), np.asarray(wholes, float)
    if not (np.isfinite(over).any() and np.nansum(under)):
        return {"value": float("nan"), "low": float("nan"), "high": float("nan"), "clips": 0}

    def of(chosen: NDArray[np.int64]) -> float:
        a, b = over[chosen], under[chosen]
        some = np.isfinite(a).any() and np.nansum(b) > 0
        return float(np.nanmean(a) / np.nanmean(b)) if some else float("nan")

    picks = np.random.default_rng(0).integers(len(over), size=(DRAWS, len(over)))
    low, high = np.nanpercentile([of(chosen) for chosen in picks], (2.5, 97.5))
    clips = int((np.isfinite(over) | np.isfinite(under)).sum())
    return {"value": of(np.arange(len(over))), "low": float(low), "high": float(high), "clips": clips}
