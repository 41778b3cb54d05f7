"""The reward `llm_judge`: what a language model says of an answer."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="llm_judge",
        build="finetooth_judge.reward:build",
        summary="the score that a language model behind an OpenAI-compatible server gives an answer",
        example={
            "base_url": "http://127.0.0.1:9/v1",  # nobody answers there
            "model": "judge",
            "rubric": "Is it polite?",
            "retries": 0,
            "failed": "none",
        },
    )
