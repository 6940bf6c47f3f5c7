"""Generated sentences with exact labels: a topic, a part of speech for each word, and a score."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch

from multitask.data.base import Split
from multitask.data.loading import SPLITS, Made, check_counts
from multitask.data.text import Text
from multitask.losses.counts import DEFAULT_IGNORE_INDEX
from multitask.randomness import derived_seed

TAGS = ("determiner", "adverb", "adjective", "noun", "verb", "preposition")
NOUNS = {
    "animals": ("dog", "horse", "duck", "fly", "bear", "fish"),
    "kitchen": ("cook", "soup", "oven", "plate", "spice", "salt"),
    "travel": ("train", "ship", "driver", "bridge", "ticket", "ferry"),
    "garden": ("plant", "rose", "fence", "water", "gardener", "tree"),
}
"""The nouns of each topic, in the order of the classes. Some are also verbs, depending on their position."""
VERBS = (
    *("fish", "duck", "cook", "train", "ship", "plant", "water", "salt"),
    *("watched", "found", "carried", "left"),
)
ADJECTIVES = {"lovely": 2, "good": 1, "bright": 1, "plain": 0, "old": 0, "dull": -1, "bad": -1, "awful": -2}
"""The score of each adjective."""
ADVERBS = {"very": 2, "hardly": -1}
"""The factor of each adverb on the score of the next adjective."""
DETERMINERS = ("the", "a", "this", "some")
PREPOSITIONS = ("near", "with", "without", "behind")

PAD, START = 0, 1
VOCABULARY = dict.fromkeys(
    chain(("[PAD]", "[CLS]"), DETERMINERS, ADVERBS, ADJECTIVES, *NOUNS.values(), VERBS, PREPOSITIONS, ("by",))
)
"""All words; a word's id is its index."""
_IDS = {word: number for number, word in enumerate(VOCABULARY)}


@dataclass(eq=False)
class Sentences(Text):
    """Sentences of 5 to 17 words after the token ``[CLS]``, drawn from a grammar.

    ``topic`` is the class of the agent: the first noun, or the noun after "by". ``tags`` is the part of speech of each
    word (:data:`TAGS`), −100 for ``[CLS]`` and padding. ``score`` is the sum over adjectives of their score times the
    factor of the preceding adverb.

    Args:
        examples: Number of sentences for train, validation and test.
        sentences_seed: Seed of the sentences: fixed, so that runs of all seeds share one test set.
    """

    examples: Sequence[int] = (2000, 400, 400)
    sentences_seed: int = 0
    pad: int = field(default=PAD, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self.examples)

    def load(self) -> dict[str, Split]:
        """Draw the sentences of each split."""
        splits: dict[str, Split] = {}
        for split, count in zip(SPLITS, self.examples, strict=True):
            seeds = (derived_seed(split, self.sentences_seed, i) for i in range(count))
            drawn = [example(torch.Generator().manual_seed(seed)) for seed in seeds]
            splits[split] = Made(count, drawn.__getitem__)
        return splits


def example(generator: torch.Generator) -> dict[str, Any]:
    """Draw a sentence and return it as an example, token ids with their labels."""
    words, topic, score = draw(generator)
    return {
        "inputs": {
            "input_ids": torch.tensor([START, *(_IDS[word] for word, _ in words)]),
            "attention_mask": torch.ones(len(words) + 1, dtype=torch.long),
        },
        "topic": torch.tensor(list(NOUNS).index(topic)),
        "tags": torch.tensor([DEFAULT_IGNORE_INDEX, *(TAGS.index(tag) for _, tag in words)]),
        "score": torch.tensor(float(score)),
    }


def draw(generator: torch.Generator) -> tuple[list[tuple[str, str]], str, int]:
    """Return the words of a sentence with their parts of speech, the topic, and the score."""

    def one(choices: Sequence[str]) -> str:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def sometimes() -> bool:
        return bool(torch.randint(2, (), generator=generator))

    def phrase() -> tuple[list[tuple[str, str]], str, int]:
        words, score = [(one(DETERMINERS), "determiner")], 0
        if sometimes():
            factor = 1
            if sometimes():
                words.append((one(list(ADVERBS)), "adverb"))
                factor = ADVERBS[words[-1][0]]
            words.append((one(list(ADJECTIVES)), "adjective"))
            score = factor * ADJECTIVES[words[-1][0]]
        topic = one(list(NOUNS))
        return [*words, (one(NOUNS[topic]), "noun")], topic, score

    (first, of_first, score), (second, of_second, more) = phrase(), phrase()
    words, topic = [*first, (one(VERBS), "verb")], of_first
    if sometimes():
        words.append(("by", "preposition"))
        topic = of_second
    words += second
    if sometimes():
        place, _, beside = phrase()
        words += [(one(PREPOSITIONS), "preposition"), *place]
        more += beside
    return words, topic, score + more
