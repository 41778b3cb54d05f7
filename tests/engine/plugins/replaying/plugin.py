"""A method whose state is arrays: it draws rows by how surprising they were (as in Schaul et al., 2015,
arXiv:1511.05952, proportional variant)."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(name="replay", build="replaying.method:build", summary="rows by their surprise")
