"""The reward `python_function`: a Python function of one's own."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Reward, hookimpl


@hookimpl
def ft_rewards() -> Iterator[Reward]:
    yield Reward(
        name="python_function",
        build="finetooth_function.reward:build",
        summary="your own Python function, in a file or a module; also a reward function written for TRL",
        example={"file": "{folder}/lengths.py", "function": "shorter"},
        example_files={
            "lengths.py": "def shorter(completions, **columns):\n    return [-float(len(c)) for c in completions]\n"
        },
    )
