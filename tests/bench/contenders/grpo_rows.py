"""What both contenders of GRPO share: prompts, and a reward that any answer has."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meter import Meter

SLOW_SECONDS = 3.0
"""About as long as a step takes two cores."""


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """The share of vowels among the letters of each answer: answers of a group differ, whoever wrote them.

    Args:
        completions: texts, or lists with one message.
    """
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    return [sum(letter in "aeiouAEIOU" for letter in text) / max(1, len(text)) for text in texts]


def slow_vowels(completions: list[Any], **columns: Any) -> list[float]:
    """The same by somebody who takes their time, as a judge in another place does; see `SLOW_SECONDS`."""
    time.sleep(SLOW_SECONDS)
    return vowels(completions, **columns)


def prompts(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with the messages of a prompt, those of the steps in their order."""
    lines = Path(spec["rows_file"]).read_text(encoding="utf-8").splitlines()
    return [{"prompt": json.loads(line)["prompt"]} for line in lines][: spec["steps"] * spec["batch_size"]]


def drawn(lengths: list[int], meter: Meter) -> dict[str, Any]:
    """What both report of the rollouts of all steps.

    Args:
        lengths: tokens of each completion.
    """
    return {
        "samples": len(lengths),
        "samples_per_second": len(lengths) / meter.train_s,
        "samples_per_cpu_second": len(lengths) / meter.train_cpu_s,
        "completion_tokens": sum(lengths),
        "mean_length": sum(lengths) / len(lengths),
    }
