"""Rewards that are rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetooth_hooks import Reward, hookimpl

_RULES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("number_match", "number", "1 if the answer's last number is the expected one, else 0", {}),
    ("regex_match", "pattern", "1 if a regular expression matches the answer, else 0", {"pattern": r"\d+"}),
    ("tag_format", "tags", "1 if the answer consists of the given tags in order, else 0", {}),
    ("answer_length", "length", "1 if the answer is neither too short nor too long, less otherwise", {"most": 50}),
    (
        "soft_overlong",
        "overlong",
        "0 for an answer well below the maximum length, falling to -1 at that length (DAPO)",
        {"max_length": 256, "cache": 64},
    ),
    ("json_schema", "schema", "1 if the answer is JSON that matches a schema, else 0", {"schema": {"type": "object"}}),
)
"""Name, module, summary and an example of its options."""


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    for name, module, summary, example in _RULES:
        yield Reward(name=name, build=f"finetooth_rules.{module}:build", summary=summary, example=example)
