"""`ft export` and `ft quantize`: write a model for another tool, or in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Command, hookimpl


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="export",
        build="finetooth_export.command:command",
        summary="write a trained model or adapter for another tool",
        section="Use",
    )
    yield Command(
        name="quantize",
        build="finetooth_export.quantize:command",
        summary="store a run or a model in fewer bits, and measure the loss of quality",
        section="Use",
    )
