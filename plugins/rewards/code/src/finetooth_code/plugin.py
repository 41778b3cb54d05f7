"""The reward `code_tests`: answers are programs, run in a sandbox."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="code_tests",
        build="finetooth_code.reward:build",
        summary="1 for code that passes its tests, run in a sandbox, else 0",
        example={"tests": "answer"},
    )
