"""Seeds by purpose: one named function, so that no two draws share a stream by accident and none depends on order."""

from __future__ import annotations

import hashlib


def seed_for(base: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for one draw.

    Args:
        base: the run's or session's seed.
        purpose: what is drawn, for example "noise".
        indices: what it is drawn for, for example (chunk, pass). Ranks that must agree leave their rank out.
    """
    text = f"{base}/{purpose}/{'/'.join(map(str, indices))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
