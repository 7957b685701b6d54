"""Sentences of everyday conversation from a seeded grammar.

Why a grammar: a model that hears the same few sentences learns them by heart. Slots multiply here to
millions of sentences, while questions and answers still share a topic, so that a dialogue sounds sensible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

SLOTS: dict[str, tuple[str, ...]] = {
    "when": (
        "today",
        "yesterday",
        "last week",
        "on Monday",
        "this morning",
        "in the summer",
        "over the weekend",
        "before lunch",
        "last month",
        "on Friday night",
        "early in the spring",
        "a few days ago",
    ),
    "person": (
        "my sister",
        "my brother",
        "a good friend",
        "our neighbor",
        "my mother",
        "my boss",
        "a young teacher",
        "my father",
        "the baker",
        "my cousin",
        "an old colleague",
        "the woman next door",
        "our coach",
    ),
    "place": (
        "the market",
        "the beach",
        "a small village",
        "the park",
        "the museum",
        "our garden",
        "the library",
        "a quiet cafe",
        "the mountains",
        "the harbor",
        "the theater",
        "a farm by the river",
        "the office",
    ),
    "food": (
        "bread with olives",
        "a big apple pie",
        "mushroom soup",
        "fresh pasta",
        "spicy beans",
        "fish and potatoes",
        "a bowl of cherries",
        "pancakes with butter",
        "warm rice pudding",
        "vegetable stew",
        "a plum cake",
    ),
    "thing": (
        "a wooden boat",
        "an old guitar",
        "a blue bicycle",
        "a map of the city",
        "a pair of boots",
        "a tall lamp",
        "a box of books",
        "a new camera",
        "a warm coat",
        "a piano",
        "a garden chair",
        "a box of tomato plants",
    ),
    "hobby": (
        "painting",
        "playing the piano",
        "running",
        "cooking",
        "growing vegetables",
        "reading novels",
        "swimming",
        "taking photographs",
        "baking bread",
        "climbing",
        "sailing",
        "learning to dance",
        "building furniture",
    ),
    "weather": ("sunny", "rainy", "foggy", "cold and windy", "warm", "cloudy", "bright and calm", "a little stormy"),
    "good": (
        "wonderful",
        "really lovely",
        "quite fun",
        "better than I hoped",
        "amazing",
        "very peaceful",
        "brilliant",
        "a great surprise",
        "pretty good",
        "so beautiful",
    ),
    "bad": (
        "a bit boring",
        "harder than I thought",
        "too expensive",
        "rather slow",
        "very tiring",
        "not so easy",
        "a complete mess",
        "far too long",
        "quite confusing",
    ),
    "open": (
        "Well,",
        "You know,",
        "Honestly,",
        "Oh,",
        "Actually,",
        "I think",
        "To be fair,",
        "Yes, and",
        "I believe",
        "As far as I know,",
        "Hmm,",
        "Funny you ask,",
        "Let me see,",
        "From what I remember,",
    ),
    "number": ("two", "three", "four", "five", "about six", "seven", "ten", "a dozen", "twenty", "almost fifty"),
    "unit": ("hours", "days", "weeks", "minutes", "months"),
    "animal": ("a brown puppy", "a small cat", "two white horses", "a family of ducks", "a very old parrot", "a fox"),
    "did": ("found", "bought", "repaired", "borrowed", "sold", "painted", "lost", "brought home", "looked at"),
    "went": (
        "went to",
        "walked to",
        "drove past",
        "had coffee at",
        "met everyone at",
        "spent the day at",
        "got lost near",
    ),
    "feel": ("happy", "tired but happy", "a little nervous", "proud", "very calm", "hungry", "more relaxed", "amused"),
    "plan": (
        "visit",
        "move closer to",
        "take some pictures of",
        "draw",
        "walk around",
        "tell you more about",
        "explore",
    ),
}

QUESTIONS = (
    "What did you do {when}?",
    "How was {place} {when}?",
    "Have you ever tried {food}?",
    "Do you still enjoy {hobby}?",
    "Could you tell me about {thing} that you {did}?",
    "Who taught you {hobby}?",
    "Did {person} really like {food}?",
    "Was it {weather} when you {went} {place}?",
    "How many {unit} does it take to get to {place}?",
    "Would you rather go to {place} or to {place}?",
    "Why did {person} want {thing}?",
    "What makes {hobby} so much fun for you?",
    "Where can I find {food} around here?",
    "Is {person} coming to {place} with us?",
)
ANSWERS = (
    "{open} {person} and I {went} {place}, and it was {good}.",
    "{open} we had {food}, which was {good}.",
    "{open} it took us {number} {unit}, but the view from {place} was {good}.",
    "{open} {hobby} makes me feel {feel}, especially when it is {weather}.",
    "{open} it was {weather}, so we {went} {place} and shared {food}.",
    "{open} {person} {did} {thing} {when}, and everybody felt {feel}.",
    "{open} it was {bad} at first, and then it became {good}.",
    "{open} we saw {animal} near {place}, and {person} could not stop laughing.",
    "{open} I want to {plan} {place} again, because last time was {good}.",
    "{open} {hobby} for {number} {unit} can be {bad}, but I always feel {feel} after it.",
)
STATEMENTS = (
    "I {did} {thing} {when}.",
    "My plan is to {plan} {place} with {person}.",
    "We need {number} more {unit} for this.",
    "{person} says that {hobby} is {good}.",
    "The trip to {place} was {bad}.",
    "I keep thinking about {food}.",
    "There was {animal} right behind {thing}.",
    "Please bring {thing} to {place}.",
    "It looks {weather} over there.",
    "{person} makes me feel {feel}.",
    "I would love to try {hobby} with {person} {when}.",
)
REACTIONS = (
    "That sounds {good}.",
    "I would feel {feel} too.",
    "Oh, {food}, how nice.",
    "Maybe we should {plan} {place} together.",
    "I had no idea that {person} likes {hobby}.",
    "That must have been {bad}.",
    "Good for you.",
    "I am glad to hear that.",
    "It was probably {weather}, was it not?",
)
BACKCHANNELS = ("mm hmm", "right", "I see", "yeah", "okay", "oh", "sure", "uh huh", "wow", "really", "of course")


@dataclass(frozen=True)
class Topic:
    """Templates of sentences that belong together."""

    name: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Grammar:
    """Slots, which may hold slots; topics; reactions that fit all of them; backchannels, which do repeat."""

    slots: dict[str, tuple[str, ...]]
    topics: tuple[Topic, ...]
    reactions: tuple[str, ...]
    backchannels: tuple[str, ...]

    def repeat_chance(self, template: str) -> float:
        """The chance that two sentences drawn from this template are the same, if no two ways spell the same."""
        chance = 1.0
        for name in re.findall(r"\{(\w+)\}", template):
            options = self.slots[name]
            chance *= sum(self.repeat_chance(option) for option in options) / len(options) ** 2
        return chance


EVERYDAY = Grammar(SLOTS, (Topic("everyday", QUESTIONS, ANSWERS, STATEMENTS),), REACTIONS, BACKCHANNELS)
_NEW_TOPIC = 0.15  # chance per turn


@dataclass
class Scripts:
    """Draws sentences from a grammar with its own generator; `rng` is advanced by every call."""

    rng: np.random.Generator
    grammar: Grammar = EVERYDAY
    _topic: Topic | None = None

    def pick(self, options: tuple[str, ...]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def fill(self, template: str) -> str:
        """Replace every slot by an independent draw and begin with a capital letter."""
        text = self._expand(template)
        return text[0].upper() + text[1:]

    def _expand(self, template: str) -> str:
        return re.sub(r"\{(\w+)\}", lambda m: self._expand(self.pick(self.grammar.slots[m.group(1)])), template)

    @property
    def topic(self) -> Topic:
        """What is talked about now."""
        if self._topic is None:
            self.change_topic()
        assert self._topic is not None
        return self._topic

    def change_topic(self) -> None:
        """Go on with any topic; draws nothing where there is one only."""
        topics = self.grammar.topics
        self._topic = topics[int(self.rng.integers(len(topics)))] if len(topics) > 1 else topics[0]

    def question(self) -> str:
        return self.fill(self.pick(self.topic.questions))

    def answer(self) -> str:
        return self.fill(self.pick(self.topic.answers))

    def statement(self) -> str:
        return self.fill(self.pick(self.topic.statements))

    def reaction(self) -> str:
        return self.fill(self.pick(self.grammar.reactions))

    def backchannel(self) -> str:
        return self.pick(self.grammar.backchannels)

    def turn(self) -> tuple[str, ...]:
        """One to three sentences that one person says in a turn."""
        if len(self.grammar.topics) > 1 and self.rng.random() < _NEW_TOPIC:
            self.change_topic()
        kind = self.rng.random()
        if kind < 0.25:
            return (self.question(),)
        if kind < 0.45:
            return (self.answer(),)
        if kind < 0.60:
            return (self.reaction(), self.question())
        if kind < 0.75:
            return (self.statement(),)
        if kind < 0.90:
            return (self.answer(), self.statement())
        return (self.reaction(), self.statement())
