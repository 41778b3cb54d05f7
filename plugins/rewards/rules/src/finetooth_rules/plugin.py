"""Rewards that are rules."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="number_match",
        build="finetooth_rules.number:build",
        summary="1 if the answer's last number is the expected one, else 0",
    )
    yield Reward(
        name="regex_match",
        build="finetooth_rules.pattern:build",
        summary="1 if a regular expression matches the answer, else 0",
        example={"pattern": r"\d+"},
    )
    yield Reward(
        name="tag_format",
        build="finetooth_rules.tags:build",
        summary="1 if the answer consists of tags in their order, else 0",
    )
    yield Reward(
        name="answer_length",
        build="finetooth_rules.length:build",
        summary="1 if the answer is neither too short nor too long, less beyond",
        example={"most": 50},
    )
    yield Reward(
        name="soft_overlong",
        build="finetooth_rules.overlong:build",
        summary="0 for an answer well below the longest length, down to -1 at it (DAPO)",
        example={"max_length": 256, "cache": 64},
    )
    yield Reward(
        name="json_schema",
        build="finetooth_rules.schema:build",
        summary="1 if the answer is JSON that keeps a schema, else 0",
        example={"schema": {"type": "object"}},
    )
