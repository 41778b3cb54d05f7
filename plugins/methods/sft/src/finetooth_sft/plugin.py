"""Supervised fine-tuning: learn the assistant's answers."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Method, hookimpl


@hookimpl
def ft_methods() -> Iterator[Method]:
    yield Method(
        name="sft",
        build="finetooth_sft.method:Sft",
        summary="supervised fine-tuning on conversations or prompts with completions",
        learns_from="rows with answers: prompts with completions, conversations, or texts of which all trains",
        rows="200 to 100,000 rows; 1,000 good ones carry far (Zhou et al., 2023, 2305.11206)",
        default=True,
        elsewhere={"supervised": {}, "instruction_tuning": {}, "finetune": {}},
    )
