"""The method `acme_method`."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="acme_method",
        build="acme_method.method:build",
        summary="learns the last answer of each conversation",
    )
