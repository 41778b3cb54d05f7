"""DiLoCo: islands train apart, and meet once in many steps (Douillard et al., 2023, arXiv:2311.08105, algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Strategy, hookimpl


@hookimpl
def ft_strategies() -> Iterator[Strategy]:
    yield Strategy(
        name="diloco",
        build="finetooth_diloco.options:build",
        summary="islands of ranks train separately, and exchange their changes once every many steps",
        capabilities=frozenset({"islands", "traffic"}),
    )
