"""Trained reward models in use: as a reward, and for scoring files."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="model",
        build="finetooth_rewardmodel.reward:build",
        summary="the score that a trained reward model gives an answer",
        example={"path": "runs/rm-1"},
        concurrent=False,
    )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="score",
        build="finetooth_rewardmodel.command:command",
        summary="score the rows of a file with a reward model",
        section="Use",
        after_scalar_run="{run} ROWS.jsonl",
    )
