"""Sentences that do not repeat."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from streamavatar.synth.scripts import EVERYDAY, Grammar, Scripts, Topic
from streamavatar.synth.topics import WIDE


def templates(grammar: Grammar) -> list[str]:
    kinds = [kind for topic in grammar.topics for kind in (topic.questions, topic.answers, topic.statements)]
    return [text for kind in (*kinds, grammar.reactions) for text in kind]


@pytest.mark.parametrize("grammar", [EVERYDAY, WIDE], ids=["everyday", "wide"])
def test_slots_exist_and_text_is_plain(grammar: Grammar) -> None:
    options = [option for values in grammar.slots.values() for option in values]
    for text in (*templates(grammar), *options):
        assert text == " ".join(text.split())
        assert text
        assert set(re.findall(r"\{(\w+)\}", text)) <= set(grammar.slots)
    scripts = Scripts(np.random.default_rng(0), grammar)
    for text in (sentence for _ in range(500) for sentence in scripts.turn()):
        assert re.fullmatch(r"[A-Z][A-Za-z' ,.?]+[.?]", text), text


def test_wide_sentences_do_not_repeat_in_a_thousand_dialogues() -> None:
    scripts = Scripts(np.random.default_rng(5), WIDE)
    said = [sentence for _ in range(8000) for sentence in scripts.turn()]
    assert len(said) > 10_000
    assert len(said) - len(set(said)) <= 2
    assert max(WIDE.repeat_chance(text) for text in templates(WIDE)) < 3e-6


def test_repeat_chance_counts_what_is_drawn() -> None:
    slots = {"a": ("x", "y", "{b}", "{b}{b}"), "b": tuple("123456789")}
    grammar = Grammar(slots, (Topic("t", ("{a}-{b}",), (), ()),), (), ())
    scripts = Scripts(np.random.default_rng(0), grammar)
    pairs = [scripts.question() == scripts.question() for _ in range(15_000)]
    assert np.mean(pairs) == pytest.approx(grammar.repeat_chance("{a}-{b}"), rel=0.2)


def test_a_conversation_stays_on_its_topic_for_a_while() -> None:
    scripts = Scripts(np.random.default_rng(2), WIDE)
    topics = []
    for _ in range(600):
        scripts.turn()
        topics.append(scripts.topic.name)
    changes = sum(a != b for a, b in pairwise(topics))
    assert 40 < changes < 140
    assert set(topics) == {topic.name for topic in WIDE.topics}
