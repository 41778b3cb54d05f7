"""A face of the server for programs that speak OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Iterable

from finetooth_hooks import Face, hookimpl


@hookimpl
def ft_faces() -> Iterable[Face]:
    yield Face(
        name="openai",
        build="finetooth_openai.face:OpenAIFace",
        summary="chat, completions, responses and embeddings in OpenAI's protocol",
    )
