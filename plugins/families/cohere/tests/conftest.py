"""A tokenizer with Cohere's control tokens, and templates that speak as Cohere's models do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from finetooth_cohere.renderer import Cohere2
from finetooth_kit.shared_data import trl_template
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

TURN, OVER = "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"
HEAD = (
    "{{ bos_token }}{% set first = messages[0].content if messages[0].role == 'system' else '' %}"
    + TURN
    + "<|SYSTEM_TOKEN|># Rules\nWrite <|START_RESPONSE|> first."
)
DEVELOPER = "{% if first %}\n\n# Yours\n{{ first }}{% endif %}" + OVER
WITHOUT_TOOLS = (
    HEAD
    + DEVELOPER
    + "{% for m in messages %}{% if not (loop.first and first) %}"
    + TURN
    + "{% if m.role == 'assistant' %}<|CHATBOT_TOKEN|><|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>"
    "{% elif m.role == 'user' %}<|USER_TOKEN|>{{ m.content }}{% else %}<|SYSTEM_TOKEN|>{{ m.content }}{% endif %}"
    + OVER
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + TURN
    + "<|CHATBOT_TOKEN|><|START_RESPONSE|>{% endif %}"
)
"""As Tiny Aya: a prompt opens the response, and tools are left out."""
WITH_TOOLS = (
    HEAD
    + """{% if tools %}

Tools:
[
{% for tool in tools %}
    {"name": "{{ tool.function.name }}", "description": "{{ tool.function.description }}", "parameters": """
    + """{{ tool.function.parameters | tojson }}, "responses": null}{{ "," if not loop.last }}
{% endfor %}
]{% endif %}"""
    + DEVELOPER
    + """{% set n = namespace(call=0, ids=[]) %}{% for m in messages %}{% if not (loop.first and first) %}
{%- if m.role != 'tool' or messages[loop.index0 - 1].role != 'tool' %}"""
    + TURN
    + """{{ {'assistant': '<|CHATBOT_TOKEN|>', 'user': '<|USER_TOKEN|>'}.get(m.role, '<|SYSTEM_TOKEN|>') }}{% endif %}
{%- if m.tool_calls %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|><|START_ACTION|>[{{ '\\n' }}
{%- for call in m.tool_calls %}{% set n.ids = n.ids + [call.id] %}    {"tool_call_id": "{{ n.call }}", """
    + """"tool_name": "{{ call.function.name }}", "parameters": {{ call.function.arguments | tojson }}}
{{- "" if loop.last else "," }}{{ '\\n' }}{% set n.call = n.call + 1 %}{% endfor %}]<|END_ACTION|>
{%- elif m.role == 'assistant' %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>
{%- elif m.role == 'tool' %}{{ ',' if messages[loop.index0 - 1].role == 'tool' else '<|START_TOOL_RESULT|>[' }}
    {
        "tool_call_id": "{{ n.ids.index(m.tool_call_id) }}",
        "results": {
            "0": {{ m.content | tojson }}
        },
        "is_error": null
    }{% if loop.last or loop.nextitem.role != 'tool' %}{{ '\\n' }}]<|END_TOOL_RESULT|>{% endif %}
{%- else %}{{ m.content }}{% endif %}
{%- if m.role != 'tool' or loop.last or loop.nextitem.role != 'tool' %}"""
    + OVER
    + "{% endif %}{% endif %}{% endfor %}"
    + TURN
    + "<|CHATBOT_TOKEN|>"
)
"""As Command R7B: tools, and behind every conversation the beginning of a further answer."""
RESTATED = {"tools": WITH_TOOLS, "plain": WITHOUT_TOOLS}


def made(template: str) -> FastTokenizer:
    special = (*Cohere2.controls, *Cohere2.optional)
    return template_tokenizer(template, special, eos=OVER, bos="<BOS_TOKEN>")


@pytest.fixture(scope="session")
def cohere_tokenizer() -> Callable[[str], FastTokenizer]:
    """Makes a tokenizer with a template."""
    return made


@pytest.fixture(scope="session")
def tokenizers() -> Callable[[str], FastTokenizer]:
    """`tokenizers("tools")`, by a name in `RESTATED`."""
    return cache(lambda name: made(RESTATED[name]))


@pytest.fixture(scope="session")
def tiny_aya(trl_template: Callable[[str], str]) -> FastTokenizer:
    """With the template of Tiny Aya, which TRL calls `cohere2`."""
    return made(trl_template("cohere2"))


__all__ = ["cohere_tokenizer", "tiny_aya", "tokenizers", "trl_template"]
