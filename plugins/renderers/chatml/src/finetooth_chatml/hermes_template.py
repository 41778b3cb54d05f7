"""The markup `hermes` as a chat template, with its tools, for tools that read templates."""

from __future__ import annotations

from collections.abc import Mapping

from finetooth_toolbox.messages.written_templates import literal

TEMPLATE = """\
{%- macro type_of(schema) -%}
{%- set kind = schema['type'] if 'type' in schema else [] -%}
{%- if kind is none -%}Any
{%- elif kind is string -%}
{%- if kind in types -%}{{ types[kind] }}
{%- elif kind == 'array' -%}list[Union[]]
{%- elif kind == 'object' and schema['additionalProperties'] is mapping -%}
dict[str, {{ type_of(schema['additionalProperties']) }}]
{%- elif kind == 'object' and 'additionalProperties' in schema -%}dict[str, Union[]]
{%- elif kind == 'object' -%}dict
{%- else -%}{{ raise_exception('a parameter of a tool has a type without a name') }}
{%- endif -%}
{%- else -%}Union[
{%- for one in kind -%}{{ type_of({'type': one}) }}{%- if not loop.last -%},{%- endif -%}{%- endfor -%}]
{%- endif -%}
{%- endmacro -%}
{{- begin -}}
{%- if tools -%}
{{- start + 'system\\n' + before -}}
{%- for tool in tools -%}
{%- set function = tool['function'] if 'function' in tool else tool -%}
{%- set parameters = function['parameters'] -%}
{%- set fields = parameters['properties'] if parameters['properties'] else {} -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{{- '{"type": "function", "function": {"name": "' + function['name'] + '", "description": "' -}}
{{- function['name'] + '(' -}}
{%- for name in fields -%}
{{- name + ': ' + type_of(fields[name]) -}}{%- if not loop.last -%}{{ ', ' }}{%- endif -%}
{%- endfor -%}
{{- ')' -}}
{%- set result = function['return'] if function['return'] is mapping else none -%}
{%- if result is not none -%}{{ ' -> ' + type_of(result) }}{%- endif -%}
{{- ' - ' + function['description'] + '\\n\\n' -}}
{%- if fields -%}{{ '    Args:\\n' }}{%- endif -%}
{%- for name in fields -%}
{%- set about = fields[name]['description'] if 'description' in fields[name] else '' -%}
{{- '        ' + name + '(' + type_of(fields[name]) + '): ' + (about | string | trim) -}}
{%- endfor -%}
{%- if result is not none and 'description' in result -%}
{{- '\\n    Returns:\\n        ' + (result['description'] | string) -}}
{%- endif -%}
{{- '", "parameters": ' -}}
{%- if fields -%}{{ parameters | tojson }}{%- else -%}{{ '{}' }}{%- endif -%}
{{- '}' -}}
{%- endfor -%}
{{- after + end + '\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{%- if loop.first -%}{{ raise_exception('a result of nothing') }}{%- endif -%}
{%- if messages[loop.index0 - 1]['role'] != 'tool' -%}{{ start + 'tool\\n' }}{%- endif -%}
{{- result_start + '\\n' + message['content'] + '\\n' + result_end -}}
{%- if not loop.last -%}{{ '\\n' }}{%- endif -%}
{%- if loop.last or messages[loop.index0 + 1]['role'] != 'tool' -%}{{ end }}{%- endif -%}
{%- else -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('no message of role ' + message['role'] + ' can stand here') -}}
{%- endif -%}
{{- start + message['role'] + '\\n' -}}
{%- if message['content'] -%}{{ message['content'] }}{%- endif -%}
{%- if message['tool_calls'] -%}
{%- if message['content'] -%}{{ raise_exception('no text can stand with calls of tools') }}{%- endif -%}
{%- for call in message['tool_calls'] -%}
{%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
{{- call_start + '\\n{"name": "' + call['function']['name'] + '", "arguments": ' -}}
{%- set arguments = call['function']['arguments'] -%}
{%- if arguments is string -%}{{ arguments }}{%- else -%}{{ arguments | tojson }}{%- endif -%}
{{- '}\\n' + call_end -}}
{%- endfor -%}
{%- endif -%}
{{- end + '\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ start + 'assistant\\n' }}{%- endif -%}"""


def written(names: Mapping[str, str | Mapping[str, str]]) -> str:
    """The template.

    Args:
        names: what is written in it, by the variable that stands for it.
    """
    return "".join("{%- set " + name + " = " + literal(value) + " -%}" for name, value in names.items()) + TEMPLATE
