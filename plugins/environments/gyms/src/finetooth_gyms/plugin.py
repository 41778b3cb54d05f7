"""Environments that were written for others: verifiers, OpenEnv, NeMo Gym, the Tinker cookbook."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Environment, hookimpl


@hookimpl
def ft_environments() -> Iterator[Environment]:
    for name, summary in (
        ("nemogym", "a resource server of NeMo Gym, over HTTP"),
        ("openenv", "an environment of OpenEnv, through its client"),
        ("verifiers", "an environment of verifiers"),
        ("cookbook", "an Env of the Tinker cookbook"),
    ):
        yield Environment(name=name, build=f"finetooth_gyms.{name}:build", summary=summary, remote=True)
