"""The markup `hermes` as a chat template, with its tools, for tools that read templates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetooth_toolbox.messages.written_templates import literal

TEMPLATE = (Path(__file__).parent / "hermes.jinja").read_text(encoding="utf-8").removesuffix("\n")


def written(names: Mapping[str, str | Mapping[str, str]]) -> str:
    """The template.

    Args:
        names: what is written in it, by the variable that stands for it.
    """
    return "".join("{%- set " + name + " = " + literal(value) + " -%}" for name, value in names.items()) + TEMPLATE
