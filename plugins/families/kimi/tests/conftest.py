"""A tokenizer with Kimi's control tokens, and templates that speak as Kimi K2 and K2 Thinking do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from finetooth_kimi.renderer import KimiK2
from finetooth_kit.templates import template_tokenizer
from finetooth_toolbox.text.tokenizers import FastTokenizer

HEAD = """{% if tools %}{{ turn('system', 'tool_declare', tools | tojson(separators=SEPARATORS)) }}{% endif %}
{%- if messages and messages[0].role != 'system' %}{{ turn('system', 'system', 'Be kind.') }}FEED{% endif %}
{%- set plain = namespace(last=-1) %}
{%- for m in messages %}
{%- if m.role == 'assistant' and not m.tool_calls %}{% set plain.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- set said %}
{%- if m.role == 'tool' %}{{ '## Return of ' + m.tool_call_id + '\\n' }}{% endif %}BLOCK{{ m.content }}
{%- for call in m.tool_calls or () %}{{ '<|tool_calls_section_begin|>' if loop.first else '' }}<|tool_call_begin|>
{{- call.id }}<|tool_call_argument_begin|>{{ call.function.arguments | tojson }}<|tool_call_end|>
{{- '<|tool_calls_section_end|>' if loop.last else '' }}{% endfor %}
{%- endset %}
{{- turn(m.role if m.role in ('user', 'assistant') else 'system', m.name or m.role, said) }}
{%- endfor %}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"""
TURN = "{% macro turn(kind, name, said) %}<|im_{{ kind }}|>{{ name }}<|im_middle|>{{ said }}<|im_end|>{% endmacro %}"
BLOCK = """{% if m.role == 'assistant' %}<think>
{{- (m.reasoning_content or '') if loop.index0 > plain.last else '' }}</think>{% endif %}"""
INSTRUCT = TURN + HEAD.replace("SEPARATORS", "(', ', ': ')").replace("FEED", "{{ '\\n' }}").replace("BLOCK", "")
THINKING = TURN + HEAD.replace("SEPARATORS", "(',', ':')").replace("FEED", "").replace("BLOCK", BLOCK)
RESTATED = {"instruct": INSTRUCT, "thinking": THINKING}


def made(template: str) -> FastTokenizer:
    return template_tokenizer(template, (*KimiK2.controls, *KimiK2.optional), eos="<|im_end|>")


@pytest.fixture(scope="session")
def kimi_tokenizer() -> Callable[[str], FastTokenizer]:
    """Makes a tokenizer with a template."""
    return made


@pytest.fixture(scope="session")
def tokenizers() -> Callable[[str], FastTokenizer]:
    """`tokenizers("thinking")`, by a version."""
    return cache(lambda version: made(RESTATED[version]))
