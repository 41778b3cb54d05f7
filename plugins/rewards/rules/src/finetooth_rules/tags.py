"""The reward `tag_format`: tags in their order, `<think>...</think><answer>...</answer>` (DeepSeek-AI, 2025,
arXiv:2501.12948, section 2.2.2)."""

from __future__ import annotations

from functools import partial

from finetooth_hooks import Options
from pydantic import Field, field_validator

from finetooth_rules.per_completion import ScoreEach


class FormatOptions(Options):
    """Options of the reward `tag_format`."""

    tags: list[str] = Field(default=["think", "answer"], min_length=1)
    """Names of the tags, in their order in an answer, each once; between and around them only white space."""
    partial: bool = False
    """Whether a wrong answer scores half the share of its tags that open and close once, instead of 0."""
    filled: bool = True
    """Whether each tag must have content."""
    opened: bool = False
    """Whether the prompt already opened the first tag, so that the answer begins inside it."""

    @field_validator("tags")
    @classmethod
    def _plain(cls, tags: list[str]) -> list[str]:
        if any(not tag or any(c in "<>/" or c.isspace() for c in tag) for tag in tags) or len(set(tags)) < len(tags):
            raise ValueError("tags are names without < > / and spaces, each once")
        return tags


def score(completion: str, *, options: FormatOptions) -> float:
    """1 if the answer is as `options` say; else 0, or half the share of tags that are there once."""
    text = f"<{options.tags[0]}>{completion}" if options.opened else completion
    ends = [(f"<{tag}>", f"</{tag}>") for tag in options.tags]
    once = [text.count(start) == 1 == text.count(end) for start, end in ends]
    rest, right = text.strip(), all(once)
    for start, end in ends:
        if not right:
            break
        inside, ended, after = rest.removeprefix(start).partition(end)
        right = rest.startswith(start) and bool(ended) and (bool(inside.strip()) or not options.filled)
        rest = after.strip()
    if right and not rest:
        return 1.0
    return 0.5 * sum(once) / len(once) if options.partial else 0.0


def build(options: FormatOptions) -> ScoreEach:
    return ScoreEach(partial(score, options=options))
