"""A renderer's markup as a chat template of its own, with tools, where no template can be learned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetooth_toolbox.messages.written_templates import literal

TEXT_OF = Path(__file__).parent / "text_of.jinja"


def own_template(file: Path, names: Mapping[str, str | Mapping[str, str]]) -> str:
    """The template; the macro `text_of(message)` gives a content, of parts too, and refuses all but text.

    Args:
        file: its source.
        names: what is written in it, by the variable that stands for it.
    """
    constants = "".join("{%- set " + name + " = " + literal(value) + " -%}" for name, value in names.items())
    return constants + "".join(path.read_text(encoding="utf-8") for path in (TEXT_OF, file)).removesuffix("\n")
