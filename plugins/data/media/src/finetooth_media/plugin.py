"""Images, sounds and videos as the model's own processor reads them."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Processor, hookimpl


@hookimpl
def ft_processors() -> Iterator[Processor]:
    yield Processor(
        name="transformers",
        build="finetooth_media.processor:build",
        summary="the image, audio and video processor that comes with the model; names the row of a broken file",
        default=True,
    )
