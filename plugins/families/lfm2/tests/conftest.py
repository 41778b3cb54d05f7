"""A tokenizer with LFM2's control tokens, and templates that speak as LFM2 and LFM2.5 do."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from finetooth_kit.shared_data import trl_template
from finetooth_kit.templates import template_tokenizer
from finetooth_lfm2.renderer import LFM2Renderer
from finetooth_toolbox.text.tokenizers import FastTokenizer

HEAD = """{{- bos_token -}}
{%- set held = messages[0].role == 'system' -%}
{%- set s = namespace(says=messages[0].content if held else '') -%}
{%- if tools -%}
{%- set s.says = s.says + ('\\n' if s.says else '') + 'List of tools: LIST[' -%}
{%- for tool in tools -%}{%- set s.says = s.says + ('' if loop.first else ', ') + (tool | tojson) -%}{%- endfor -%}
{%- set s.says = s.says + ']LISTEND' -%}
{%- endif -%}
{%- if s.says -%}{{ '<|im_start|>system\\n' + s.says + '<|im_end|>\\n' }}{%- endif -%}
{%- macro calls(made) -%}
<|tool_call_start|>[
{%- for call in made -%}
{{ '' if loop.first else ', ' }}{{ call.function.name }}(
{%- for key, value in call.function.arguments.items() -%}
{{ '' if loop.first else ', ' }}{{ key }}={%- if value is string -%}{{ "'" + ESCAPED + "'" }}
{%- elif value is mapping -%}{{ value | tojson }}
{%- elif value is iterable -%}{{ LISTED }}
{%- else -%}{{ value }}{%- endif -%}
{%- endfor -%})
{%- endfor -%}]<|tool_call_end|>
{%- endmacro -%}
"""
TAIL = "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
ESCAPED = r"""value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")"""
LFM2 = (
    HEAD.replace("LISTEND", "<|tool_list_end|>")
    .replace("LIST[", "<|tool_list_start|>[")
    .replace("ESCAPED", ESCAPED)
    .replace("LISTED", "value | tojson")
    + """{%- for m in messages -%}
{%- if not (held and loop.first) -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'tool' -%}<|tool_response_start|>{{ m.content }}<|tool_response_end|>
{%- else -%}{{ m.content }}{%- endif -%}
{%- if m.tool_calls -%}{{ calls(m.tool_calls) }}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}"""
    + TAIL
)
LFM2_5 = (
    HEAD.replace("LISTEND", "").replace("LIST[", "[").replace("ESCAPED", "value").replace("LISTED", "value | string")
    + """{%- set n = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set n.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set thinks = preserve_thinking or loop.index0 > n.last -%}
{%- if not (held and loop.first) -%}
{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.thinking and thinks -%}{{ '<think>' + m.thinking + '</think>' }}{%- endif -%}
{%- if m.role == 'assistant' and not thinks and '</think>' in m.content -%}
{{ m.content.split('</think>')[-1].strip() }}
{%- else -%}{{ m.content }}{%- endif -%}
{%- if m.tool_calls -%}{{ calls(m.tool_calls) }}{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}"""
    + TAIL
)
RESTATED = {"2": LFM2, "2.5": LFM2_5}


def made(template: str) -> FastTokenizer:
    special = (*LFM2Renderer.controls, *LFM2Renderer.optional)
    return template_tokenizer(template, special, eos="<|im_end|>", bos="<|startoftext|>")


@pytest.fixture(scope="session")
def lfm2_tokenizer() -> Callable[[str], FastTokenizer]:
    """Makes a tokenizer with a template."""
    return made


@pytest.fixture(scope="session")
def tokenizers() -> Callable[[str], FastTokenizer]:
    """`tokenizers("2.5")`, by a version."""
    return cache(lambda version: made(RESTATED[version]))


@pytest.fixture(scope="session")
def officials(trl_template: Callable[[str], str]) -> Callable[[str], FastTokenizer]:
    """`officials("lfm2_2_5")`, by what TRL calls the model's own template."""
    return cache(lambda name: made(trl_template(name)))


__all__ = ["lfm2_tokenizer", "officials", "tokenizers", "trl_template"]
