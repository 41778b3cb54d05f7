"""Greedy answers to questions, and their settings, the same for all evaluators that ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetooth_hooks.context import Context
from finetooth_hooks.data.examples import Message
from finetooth_hooks.engine import Engine
from finetooth_hooks.sampling import Sampling

QUESTION = "{question}"
"""Placeholder of the question in a recorded template."""


def ask(
    engine: Engine, context: Context, prompts: Sequence[tuple[int, ...]], max_tokens: int, chat: Sequence[bool]
) -> tuple[list[str], float]:
    """Greedy answers as people read them, and the share of them that was cut off at `max_tokens`.

    Args:
        prompts: tokens of each question.
        max_tokens: the longest answer, in tokens.
        chat: for each question, whether an assistant's message answers it, not raw text.
    """
    completions = [group[0] for group in engine.generate(prompts, Sampling(max_tokens=max_tokens, temperature=0.0))]
    answers = [
        context.renderer.parse(completion.tokens).message.content if talks else completion.text
        for completion, talks in zip(completions, chat, strict=True)
    ]
    return answers, sum(completion.stop == "length" for completion in completions) / len(completions)


def settings(context: Context, max_tokens: int, *, chat: bool) -> dict[str, Any]:
    """The settings that affect greedy answers, for `Evaluation.settings`.

    `template` is a prompt as the model reads it, with `{question}` in the place of the question; `stop` are the texts
    of the tokens that end an answer.
    """
    decode, renderer = context.tokenizer.decode, context.renderer
    template = decode(renderer.prompt((Message("user", QUESTION),))) if chat else QUESTION
    stop = [decode((token,)) for token in renderer.stop_ids]
    return {"template": template, "stop": stop, "max_tokens": max_tokens, "temperature": 0.0}
