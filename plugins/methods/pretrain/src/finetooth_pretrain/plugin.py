"""Continued pre-training: every token of every document."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="pretrain",
        build="finetooth_pretrain.method:build",
        summary="continued pre-training on plain text; every token trains",
        learns_from="plain text of a field or a language",
        rows="10 million tokens and more",
        elsewhere={"pt": {}, "cpt": {}, "clm": {}, "completion": {}},
    )
