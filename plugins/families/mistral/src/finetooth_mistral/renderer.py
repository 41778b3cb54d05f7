"""The renderer `mistral`: which version of the markup a model speaks, and what they share.

    v1            <s> [INST] Hello? [/INST] Yes.</s>
    v3            <s>[INST] Hello?[/INST] Yes.</s>
    v3-tekken     <s>[INST]Hello?[/INST]Yes.</s>
    v7-tekken     <s>[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]Hello?[/INST]Yes.</s>
    v13           <s>[INST]Hello?[/INST][THINK]A greeting.[/THINK]Yes.</s>

A trained message trains all that stands between the prompt and `</s>`, and `</s>`: also the blank that v1 and v3 put
before an answer, which belongs to its first word. Text that spells a control token stays plain text.
"""

from __future__ import annotations

import datetime
import re
from typing import Literal

from finetooth_hooks import Options
from finetooth_hooks.context import Context
from finetooth_hooks.protocols import Tokenizer
from finetooth_rendering.turns import TurnRenderer, noted
from finetooth_toolbox.messages.chat_templates import default_system

from finetooth_mistral.instruct import MistralV1, MistralV3
from finetooth_mistral.system_prompt import MistralV7, Small32
from finetooth_mistral.thinking import MistralV13

Version = Literal["v1", "v3", "v3-tekken", "v7-tekken", "small-3.2", "v13"]

_SYSTEM = re.compile(r"\[SYSTEM_PROMPT\](.*?)\[/SYSTEM_PROMPT\]", re.DOTALL)


class MistralOptions(Options):
    """Options of `mistral`."""

    version: Version = "v3"
    """Version of the markup: `v1` (7B v0.1 and v0.2, Mixtral 8x7B), `v3` (7B v0.3, Mixtral 8x22B), `v3-tekken` (Nemo
    2407, Ministral 8B), `v7-tekken` (Small 2501), `small-3.2` (Small 2506), `v13` (Magistral since 2507, Ministral 3),
    which writes reasoning between `[THINK]` and `[/THINK]`."""
    system: Literal["last", "asked"] = "last"
    """For v3 and v3-tekken, which write the system message into the last user message. `last`: always. `asked`: only if
    the conversation ends with that message, as in the models' chat templates, which therefore leave it out of
    everything that ends with an answer."""
    default_system: str | None = "auto"
    """For v7-tekken, small-3.2 and v13: the system message for conversations without one. `auto` takes the one that the
    model's own chat template adds; null adds none."""
    today: datetime.date = datetime.date(2026, 1, 15)
    """Date in a default system message; fixed, so that a run gives the same tokens tomorrow."""


def build(options: MistralOptions, context: Context) -> TurnRenderer:
    """Builds the renderer, and notes where the tokenizer's chat template differs.

    Raises:
        RecipeError: the tokenizer lacks control tokens of this version.
    """
    renderer = _built(options, context.tokenizer)
    compared = _built(options.model_copy(update={"system": "asked"}), context.tokenizer)  # as templates do
    return noted(renderer, context, compared, strftime_now=options.today.strftime)


def _built(options: MistralOptions, tokenizer: Tokenizer) -> TurnRenderer:
    if options.version == "v1":
        return MistralV1(tokenizer)
    if options.version in ("v3", "v3-tekken"):
        blank = " " if options.version == "v3" else ""
        return MistralV3(tokenizer, blank=blank, always=options.system == "last")
    default = options.default_system
    if default == "auto":
        strftime_now = options.today.strftime
        default = default_system(tokenizer.chat_template, _SYSTEM, bos_token="", strftime_now=strftime_now)
    made = {"v7-tekken": MistralV7, "small-3.2": Small32, "v13": MistralV13}[options.version]
    return made(tokenizer, default or "")
