# the bars of these tokens are wide ones
"""What DeepSeek V3.2 and V4 are told about tools: the text before their schemas, and the text behind them."""

from __future__ import annotations

from finetooth_deepseek.markup import DSML, THINK, THOUGHT


def _calls(block: str, name: str) -> str:
    """How calls look, as an example."""
    return (
        f'<{DSML}{block}>\n<{DSML}invoke name="${name}">\n'
        f'<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>\n...\n'
        f'</{DSML}invoke>\n<{DSML}invoke name="${name}2">\n...\n</{DSML}invoke>\n</{DSML}{block}>\n\n'
    )


TOOLS_V3_2 = (
    "\n\n## Tools\n\nYou have access to a set of tools you can use to answer the user's question.\n"
    f'You can invoke functions by writing a "<{DSML}function_calls>" block like the following as part of your reply to '
    f"the user:\n{_calls('function_calls', 'FUNCTION_NAME')}"
    "String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects "
    'should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for '
    "other types (numbers, booleans, arrays, objects).\n\n"
    "If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking "
    f"block. Here is an example:\n\n<{DSML}function_calls>\n...\n</{DSML}function_calls>\n\n"
    f"<function_results>\n...\n</function_results>\n\n{THINK}...thinking about results{THOUGHT}\n\n"
    "Here are the functions available in JSONSchema format:\n<functions>\n",
    "\n</functions>\n",
)
TOOLS_V4 = (
    "\n\n## Tools\n\nYou have access to a set of tools to help answer the user's question. You can invoke tools by "
    f'writing a "<{DSML}tool_calls>" block like the following:\n\n{_calls("tool_calls", "TOOL_NAME")}'
    'String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, '
    'arrays, objects), pass the value in JSON format and set `string="false"`.\n\n'
    f"If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside "
    f"{THINK}...{THOUGHT} BEFORE any tool calls or final response.\n\n"
    f"Otherwise, output directly after {THOUGHT} with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n",
    "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n",
)
