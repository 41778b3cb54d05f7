"""Conversations written out by hand for models of 2025 and 2026 whose template or encoder nobody at hand carries.

What stands here was compared, letter by letter, with the models' own: the template of Qwen3-Coder, the encoders of
DeepSeek V3.2 and V4, and the templates of GLM-5.2, Kimi K2.5 and MiniMax-M2.5.
"""

from __future__ import annotations

from written_conversations import (
    BRIEF,
    CALLS,
    CALLS_END,
    FIRST,
    KIMI,
    KIMI_NOON,
    KIMI_ROME,
    NOON,
    ROME,
    SECOND,
    TOLD,
    answer,
    result,
    spoken,
    system,
    told,
    turn,
    user,
)

ASKED = (system("Be brief.\n"), user(" The time? "))
BOTH = (*ASKED, answer("", "Look.", NOON, ROME), result("12:00", NOON), result("\n", ROME))
QUIET = (*ASKED, answer("", "", NOON, ROME), result("12:00", NOON), result("\n", ROME))

# Qwen3-Coder
CODER_TOOLS = (
    "\n\n# Tools\n\nYou have access to the following functions:\n\n<tools>\n<function>\n<name>clock</name>\n"
    "<description>L'heure, à midi.</description>\n<parameters>\n</parameters>\n</function>\n</tools>\n\n"
    "If you choose to call a function ONLY reply in the following format with NO suffix:\n\n<tool_call>\n"
    "<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
    "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines\n"
    "</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block must be nested within "
    "<tool_call></tool_call> XML tags\n"
    "- Required parameters MUST be specified\n"
    "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but NOT "
    "after\n"
    "- If there is no function call available, answer the question like normal with your current knowledge and do not "
    "tell the user about function calls\n</IMPORTANT><|im_end|>\n"
)
CODER_UNASKED = (
    "<|im_start|>system\nYou are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
)
CODER_NOON = "<tool_call>\n<function=clock>\n</function>\n</tool_call>"
CODER_ROME = (
    "<tool_call>\n<function=clock>\n<parameter=zone>\nRome\n</parameter>\n<parameter=days>\n[2, null]\n</parameter>\n"
    '<parameter=more>\n{"é": true}\n</parameter>\n</function>\n</tool_call>'
)
CODER_QUESTION = "<|im_start|>user\n The time? <|im_end|>\n"
CODER_ASKS = "<|im_start|>assistant\n"
QWEN_CODER = (
    spoken([user("Hello?"), answer(" Yes.\n")], "<|im_start|>user\nHello?<|im_end|>\n", CODER_ASKS,
           f"{CODER_ASKS} Yes.\n<|im_end|>\n"),
    spoken([system(""), user(""), answer(""), user("é 😀"), answer("你好")],
           "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n"
           "<|im_start|>user\né 😀<|im_end|>\n", CODER_ASKS, f"{CODER_ASKS}你好<|im_end|>\n"),
    spoken([*ASKED, answer(" I look.\n", "", NOON, ROME)],
           f"<|im_start|>system\nBe brief.\n{CODER_TOOLS}{CODER_QUESTION}", CODER_ASKS,
           f"{CODER_ASKS}I look.\n\n{CODER_NOON}\n{CODER_ROME}<|im_end|>\n", tools=True),
    spoken([*QUIET[1:], answer("Noon.")],
           f"{CODER_UNASKED}{CODER_TOOLS}{CODER_QUESTION}{CODER_ASKS}{CODER_NOON}\n{CODER_ROME}<|im_end|>\n"
           "<|im_start|>user\n<tool_response>\n12:00\n</tool_response>\n<tool_response>\n\n\n</tool_response>\n"
           "<|im_end|>\n", CODER_ASKS, f"{CODER_ASKS}Noon.<|im_end|>\n", tools=True),
)  # fmt: skip

# DeepSeek V3.2 and V4
BAR = "\uff5c"
BEGIN, DONE = f"<{BAR}begin▁of▁sentence{BAR}>", f"<{BAR}end▁of▁sentence{BAR}>"
USER, SAYS, TAG = f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", f"{BAR}DSML{BAR}"


def tagged(block: str, name: str) -> str:
    return (
        f'<{TAG}{block}>\n<{TAG}invoke name="${name}">\n<{TAG}parameter name="$PARAMETER_NAME" string="true|false">'
        f'$PARAMETER_VALUE</{TAG}parameter>\n...\n</{TAG}invoke>\n<{TAG}invoke name="${name}2">\n...\n</{TAG}invoke>\n'
        f"</{TAG}{block}>\n\n"
    )


def both_calls(block: str) -> str:
    return (
        f'\n\n<{TAG}{block}>\n<{TAG}invoke name="clock">\n\n</{TAG}invoke>\n<{TAG}invoke name="clock">\n'
        f'<{TAG}parameter name="zone" string="true">Rome</{TAG}parameter>\n'
        f'<{TAG}parameter name="days" string="false">[2, null]</{TAG}parameter>\n'
        f'<{TAG}parameter name="more" string="false">{{"é": true}}</{TAG}parameter>\n</{TAG}invoke>\n</{TAG}{block}>'
    )


FUNCTION = TOLD.removeprefix('{"type": "function", "function": ').removesuffix("}")
"""The tool without its frame."""
V3_2_TOOLS = (
    "\n\n## Tools\n\nYou have access to a set of tools you can use to answer the user's question.\n"
    f'You can invoke functions by writing a "<{TAG}function_calls>" block like the following as part of your reply to '
    f"the user:\n{tagged('function_calls', 'FUNCTION_NAME')}"
    "String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects "
    'should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for '
    "other types (numbers, booleans, arrays, objects).\n\nIf the thinking_mode is enabled, then after function results "
    f"you should strongly consider outputting a thinking block. Here is an example:\n\n<{TAG}function_calls>\n...\n"
    f"</{TAG}function_calls>\n\n<function_results>\n...\n</function_results>\n\n<think>...thinking about results"
    f"</think>\n\nHere are the functions available in JSONSchema format:\n<functions>\n{FUNCTION}\n</functions>\n"
)
V3_2_RESULTS = "\n\n<function_results>\n<result>12:00</result>\n<result>\n</result>\n</function_results>\n\n"
V3_2_CALLS, V4_CALLS = both_calls("function_calls"), both_calls("tool_calls")
V4_TOOLS = (
    "\n\n## Tools\n\nYou have access to a set of tools to help answer the user's question. You can invoke tools by "
    f'writing a "<{TAG}tool_calls>" block like the following:\n\n{tagged("tool_calls", "TOOL_NAME")}'
    'String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, '
    'arrays, objects), pass the value in JSON format and set `string="false"`.\n\nIf thinking_mode is enabled '
    "(triggered by <think>), you MUST output your complete reasoning inside <think>...</think> BEFORE any tool calls "
    "or final response.\n\nOtherwise, output directly after </think> with tool calls or final response.\n\n"
    f"### Available Tool Schemas\n\n{FUNCTION}\n\nYou MUST strictly follow the above defined tool name and parameter "
    "schemas to invoke tool calls.\n"
)
V4_RESULTS = f"{USER}<tool_result>12:00</tool_result>\n\n<tool_result>\n</tool_result>{SAYS}"
PLAIN = (
    spoken([user("Hello?"), answer(" Yes.\n")], f"{BEGIN}{USER}Hello?{SAYS}</think>", "", f" Yes.\n{DONE}"),
    spoken([system(""), user(""), answer(""), user("é 😀"), answer("你好")],
           f"{BEGIN}{USER}{SAYS}</think>{DONE}{USER}é 😀{SAYS}</think>", "", f"你好{DONE}"),
)  # fmt: skip
V3_2_SILENT = (
    *PLAIN,
    spoken([*ASKED, answer("I look.", "", NOON, ROME)],
           f"{BEGIN}Be brief.\n{V3_2_TOOLS}{USER} The time? {SAYS}</think>", "", f"I look.{V3_2_CALLS}{DONE}",
           tools=True),
    spoken([*QUIET[1:], answer("Noon."), user("Sure?"), answer("Quite.")],
           f"{BEGIN}{V3_2_TOOLS}{USER} The time? {SAYS}</think>{V3_2_CALLS}{DONE}{V3_2_RESULTS}</think>Noon.{DONE}"
           f"{USER}Sure?{SAYS}</think>", "", f"Quite.{DONE}", tools=True),
)  # fmt: skip
THOUGHT_OVER = (
    spoken([user("Hello?"), answer("Yes.", "\nA greeting.")], f"{BEGIN}{USER}Hello?{SAYS}<think>", "",
           f"\nA greeting.</think>Yes.{DONE}"),
    spoken([user("Hello?"), answer("Yes.", "A greeting."), user("Sure?"), answer("", "Hm.")],
           f"{BEGIN}{USER}Hello?{SAYS}</think>Yes.{DONE}{USER}Sure?{SAYS}<think>", "", f"Hm.</think>{DONE}"),
)  # fmt: skip
V3_2_THINKING = (
    *THOUGHT_OVER,
    spoken([*BOTH, answer("Noon.", "So.")],
           f"{BEGIN}Be brief.\n{V3_2_TOOLS}{USER} The time? {SAYS}<think>Look.</think>{V3_2_CALLS}{DONE}{V3_2_RESULTS}"
           "<think>", "", f"So.</think>Noon.{DONE}", tools=True),
)  # fmt: skip
V4_SILENT = (
    *PLAIN,
    spoken([user("a"), user("b"), answer("Yes.")], f"{BEGIN}{USER}a\n\nb{SAYS}</think>", "", f"Yes.{DONE}"),
    spoken([*QUIET[1:], answer("Noon."), user("Sure?"), answer("Quite.")],
           f"{BEGIN}{V4_TOOLS}{USER} The time? {SAYS}</think>{V4_CALLS}{DONE}{V4_RESULTS}</think>Noon.{DONE}"
           f"{USER}Sure?{SAYS}</think>", "", f"Quite.{DONE}", tools=True),
)  # fmt: skip
V4_THINKING = (
    *THOUGHT_OVER,
    spoken([*BOTH, answer("Noon.", "So."), user("Sure?"), answer("Quite.")],
           f"{BEGIN}Be brief.\n{V4_TOOLS}{USER} The time? {SAYS}<think>Look.</think>{V4_CALLS}{DONE}{V4_RESULTS}"
           f"<think>So.</think>Noon.{DONE}{USER}Sure?{SAYS}<think>", "", f"</think>Quite.{DONE}", tools=True),
)  # fmt: skip

# GLM-5.2
FIVE = "[gMASK]<sop><|system|>Reasoning Effort: Max"
FIVE_TOOLS = (
    "<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    f"You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n{FUNCTION}\n</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"
)
FIVE_CALLS = (
    "<tool_call>clock</tool_call><tool_call>clock<arg_key>zone</arg_key><arg_value>Rome</arg_value>"
    '<arg_key>days</arg_key><arg_value>[2, null]</arg_value><arg_key>more</arg_key><arg_value>{"é": true}</arg_value>'
    "</tool_call>"
)
FIVE_RESULTS = "<|observation|><tool_response>12:00</tool_response><tool_response>\n</tool_response><|assistant|>"
GLM_5_THINKING = (
    spoken([user("Hello?"), answer("\n Yes. ", " A greeting.\n")], f"{FIVE}<|user|>Hello?<|assistant|>", "<think>",
           "<think> A greeting.\n</think>Yes.<|user|>"),
    spoken([user("Hello?"), answer("Yes.", "A greeting."), user("Sure?"), answer("Quite.")],
           f"{FIVE}<|user|>Hello?<|assistant|><think></think>Yes.<|user|>Sure?<|assistant|>", "<think>",
           "<think></think>Quite.<|user|>"),
    spoken([*BOTH, answer("Noon.", "So.")],
           f"{FIVE}{FIVE_TOOLS}<|system|>Be brief.\n<|user|> The time? <|assistant|><think>Look.</think>{FIVE_CALLS}"
           f"{FIVE_RESULTS}", "<think>", "<think>So.</think>Noon.<|user|>", tools=True),
)  # fmt: skip
GLM_5_SILENT = (
    spoken([user("Hello?"), answer("Yes."), user("Sure?"), answer(" ")],
           "[gMASK]<sop><|user|>Hello?<|assistant|><think></think>Yes.<|user|>Sure?<|assistant|>", "<think></think>",
           "<think></think><|user|>"),
    spoken([*ASKED, answer("I look.", "", NOON, ROME)],
           f"[gMASK]<sop>{FIVE_TOOLS}<|system|>Be brief.\n<|user|> The time? <|assistant|>", "<think></think>",
           f"<think></think>I look.{FIVE_CALLS}<|observation|>", tools=True),
)  # fmt: skip

# Kimi K2.5; the last answer's reasoning is left out by the template of a whole conversation, as by K2 Thinking's
K2_5_SAYS = "<|im_user|>{{ '<think>' if add_generation_prompt }}"
"""As much of the template as the renderer reads off it: that the prompt opens a think block."""
K2_5_TOOLS = (
    "<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {\n// L'heure, à midi.\n"
    "type clock = (_: {}) => any;\n}\n<|im_end|>"
)
K2_5_THINKING = (
    spoken([user("Hello?"), answer(" Yes.\n", "A greeting.")], f"{turn('user', 'Hello?')}{KIMI}", "<think>",
           "<think>A greeting.</think> Yes.\n<|im_end|>"),
    spoken([system("Be brief."), user("Hello?"), answer("Yes.", "A greeting."), user("Sure?"), answer("Quite.")],
           f"{BRIEF}{turn('user', 'Hello?')}{KIMI}<think></think>Yes.<|im_end|>{turn('user', 'Sure?')}{KIMI}",
           "<think>", "<think></think>Quite.<|im_end|>"),
    spoken([user("Time?"), answer("", "Look.", FIRST), result("12:00", FIRST), answer("So:", "Again.", SECOND)],
           f"{K2_5_TOOLS}{turn('user', 'Time?')}{KIMI}<think>Look.</think>{CALLS}{KIMI_NOON}{CALLS_END}<|im_end|>"
           f"{told('clock:0', '12:00')}{KIMI}", "<think>",
           f"<think>Again.</think>So:{CALLS}{KIMI_ROME}{CALLS_END}<|im_end|>", tools=True),
)  # fmt: skip
K2_5_SILENT = (
    spoken([user("Hello?"), answer("Yes."), user("Time?"), answer("", "", FIRST)],
           f"{K2_5_TOOLS}{turn('user', 'Hello?')}{KIMI}<think></think>Yes.<|im_end|>{turn('user', 'Time?')}{KIMI}",
           "<think></think>", f"<think></think>{CALLS}{KIMI_NOON}{CALLS_END}<|im_end|>", tools=True),
)  # fmt: skip

# MiniMax-M2.5
MINI_OPENS, MINI_ENDS, MINI_ASKS = "]~!b[]~b]system\n", "[e~[\n", "]~b]ai\n"
MINI_SAYS = MINI_OPENS + "You are MiniMax-M2.5." + MINI_ENDS
"""As much of the template as the renderer reads off it: the system message of its own."""
MINI_TOOLS = (
    "\n\n# Tools\nYou may call one or more tools to assist with the user query.\n"
    f"Here are the tools available in JSONSchema format:\n\n<tools>\n<tool>{FUNCTION}</tool>\n</tools>\n\n"
    "When making tool calls, use XML format to invoke tools and pass parameters:\n\n<minimax:tool_call>\n"
    '<invoke name="tool-name-1">\n<parameter name="param-key-1">param-value-1</parameter>\n'
    '<parameter name="param-key-2">param-value-2</parameter>\n...\n</invoke>\n</minimax:tool_call>'
)
MINI_NOON = '<invoke name="clock">\n</invoke>\n'
MINI_ROME = (
    '<invoke name="clock">\n<parameter name="zone">Rome</parameter>\n<parameter name="days">[2, null]</parameter>\n'
    '<parameter name="more">{"é": true}</parameter>\n</invoke>\n'
)
MINI_BOTH = f"\n<minimax:tool_call>\n{MINI_NOON}{MINI_ROME}</minimax:tool_call>{MINI_ENDS}"
MINI_ASKED = f"{MINI_OPENS}Be brief.\n{MINI_TOOLS}{MINI_ENDS}]~b]user\n The time? {MINI_ENDS}"
MINI_RESULTS = f"]~b]tool\n<response>12:00</response>\n<response>\n</response>{MINI_ENDS}"
MINIMAX = (
    spoken([user("Hello?"), answer(" Yes.\n", "A greeting.")], f"{MINI_SAYS}]~b]user\nHello?{MINI_ENDS}{MINI_ASKS}",
           "<think>\n", f"<think>\nA greeting.\n</think>\n\n Yes.\n{MINI_ENDS}"),
    spoken([system(""), user("é 😀"), answer("你好")], f"{MINI_SAYS}]~b]user\né 😀{MINI_ENDS}{MINI_ASKS}", "<think>\n",
           f"你好{MINI_ENDS}"),
    spoken([user("a"), answer("b", "Gone."), user("c"), answer("", " \nHm. ")],
           f"{MINI_SAYS}]~b]user\na{MINI_ENDS}{MINI_ASKS}b{MINI_ENDS}]~b]user\nc{MINI_ENDS}{MINI_ASKS}", "<think>\n",
           f"<think>\n \nHm. \n</think>\n\n{MINI_ENDS}"),
    spoken([*ASKED, answer("I look.", "Look.", NOON, ROME)], f"{MINI_ASKED}{MINI_ASKS}", "<think>\n",
           f"<think>\nLook.\n</think>\n\nI look.{MINI_BOTH}", tools=True),
    spoken([*BOTH, answer("Noon.", "So.")],
           f"{MINI_ASKED}{MINI_ASKS}<think>\nLook.\n</think>\n\n{MINI_BOTH}{MINI_RESULTS}{MINI_ASKS}", "<think>\n",
           f"<think>\nSo.\n</think>\n\nNoon.{MINI_ENDS}", tools=True),
)  # fmt: skip
