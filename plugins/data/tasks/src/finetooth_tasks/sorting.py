"""The `sorting` task: put four to six short words in alphabetical order."""

from __future__ import annotations

from finetooth_tasks.question import Draws, Question

WORDS = (
    *("apple", "arrow", "bread", "bridge", "candle", "cat", "chair", "cloud", "daisy", "door", "dream", "eagle"),
    *("earth", "farm", "fire", "fish", "garden", "glass", "hammer", "hill", "honey", "island", "ivory", "jacket"),
    *("juice", "king", "kite", "lamp", "leaf", "lemon", "moon", "mouse", "needle", "night", "oak", "ocean"),
    *("paper", "pencil", "queen", "quilt", "rain", "river", "salt", "stone", "sun", "table", "tea", "tower"),
    *("uncle", "valley", "violin", "water", "window", "winter", "yard", "zebra"),
)


def generate(draws: Draws) -> Question:
    """Draw different words, in random order."""
    words = draws.sample(WORDS, draws.between(4, 6))
    return Question(f"Sort these words alphabetically: {', '.join(words)}.", ", ".join(sorted(words)))
