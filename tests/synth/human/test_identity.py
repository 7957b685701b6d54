"""Drawing people: repeatable, adult, varied, and plain data."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest

from streamavatar.synth.human.assets import Assets
from streamavatar.synth.human.identity import HumanIdentity
from streamavatar.synth.human.shape import macro_weights


@pytest.fixture(scope="module")
def crowd(assets: Assets) -> list[HumanIdentity]:
    return [HumanIdentity.random(seed, assets) for seed in range(200)]


def test_a_seed_gives_one_person(assets: Assets) -> None:
    assert HumanIdentity.random(5, assets) == HumanIdentity.random(5, assets)
    assert HumanIdentity.random(5, assets) != HumanIdentity.random(6, assets)


def test_an_identity_survives_json(assets: Assets) -> None:
    who = HumanIdentity.random(5, assets)
    data = json.loads(json.dumps(asdict(who)))
    again = HumanIdentity(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    assert again == who


def test_the_crowd_is_balanced_and_adult(crowd: list[HumanIdentity]) -> None:
    sexes = Counter(who.sex for who in crowd)
    assert min(sexes.values()) > 0.4 * len(crowd)
    for share in ("african", "asian", "caucasian"):
        assert sum(getattr(who, share) for who in crowd) > 0.25 * len(crowd)
    assert min(who.age for who in crowd) >= 18
    assert len({who.hair for who in crowd}) >= 6
    assert len({who.clothes for who in crowd}) >= 8


def test_skin_and_clothes_fit_the_person(crowd: list[HumanIdentity]) -> None:
    for who in crowd:
        assert f"_{who.sex}_" in who.light_skin
        assert f"_{who.sex}_" in who.dark_skin
        assert who.clothes.startswith(who.sex)
        assert 0 <= who.darkness <= 1
        assert who.african + who.asian + who.caucasian == pytest.approx(1)


def test_details_are_of_the_face_and_alike_on_both_sides(crowd: list[HumanIdentity], assets: Assets) -> None:
    for who in crowd:
        assert all(name in assets.targets for name in who.details)
        assert not any(name.startswith(("expression", "macrodetails", "torso")) for name in who.details)
        assert max(who.details.values()) <= 0.75
        left = {n.replace("/l-", "/"): w for n, w in who.details.items() if "/l-" in n}
        right = {n.replace("/r-", "/"): w for n, w in who.details.items() if "/r-" in n}
        assert left == right


def test_macro_weights_are_shares_of_one_body(crowd: list[HumanIdentity], assets: Assets) -> None:
    weights = macro_weights(crowd[0])
    assert sum(w for n, w in weights.items() if "universal" in n) == pytest.approx(1)
    races = sum(w for n, w in weights.items() if n.split("/")[1].startswith(("african", "asian", "caucasian")))
    assert races == pytest.approx(1)
    assert all(name in assets.targets for name, weight in weights.items() if weight > 0)
