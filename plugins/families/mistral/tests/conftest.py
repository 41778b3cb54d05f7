"""Shared data, and tokenizers with Mistral's control tokens and chat templates."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_kit.shared_data import shared
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

TEMPLATES = {
    "v1": "mistral-v1",
    "v3": "mistral-v3",
    "v3-tekken": "mistral-v3-tekken",
    "nemo": "mistral-nemo-2407",
    "v7-tekken": "mistral-v7-tekken",
    "small-3.2": "mistral-small-3.2",
}
V3 = ["[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"]
V3 += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
V7 = [*V3, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
SPECIAL = {"v1": [], "v3": V3, "v3-tekken": V3, "nemo": V3, "v7-tekken": V7, "small-3.2": [*V7, "[CALL_ID]", "[ARGS]"]}

Make = Callable[..., FastTokenizer]


@pytest.fixture(scope="session")
def mistral_tokenizer(shared: Path) -> Make:
    """Makes the tokenizer of a version: of bytes, or the one of Llama's kind in `tokenizers/phi-3-mini`."""
    made: dict[tuple[str, bool], FastTokenizer] = {}

    def make(version: str, *, metaspace: bool = False) -> FastTokenizer:
        if (version, metaspace) not in made:
            template = (shared / f"templates/{TEMPLATES[version]}.jinja").read_text(encoding="utf-8")
            base = shared / "tokenizers/phi-3-mini" if metaspace else None
            special = [*SPECIAL[version], "<s>", "</s>"]
            made[version, metaspace] = template_tokenizer(template, special, eos="</s>", bos="<s>", base=base)
        return made[version, metaspace]

    return make


__all__ = ["mistral_tokenizer", "shared"]
