"""The reward `math_verify`: whether an answer is mathematically the expected one."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="math_verify",
        build="finetooth_math.reward:build",
        summary="1 if the answer equals the expected one mathematically, by math-verify, else 0",
    )
