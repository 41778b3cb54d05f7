"""Conversations written out by hand for renderers whose official template nobody at hand carries.

What stands here was compared, letter by letter, with the templates that the models come with: GLM-4.7-Flash's, and
those of Kimi K2 Instruct and K2 Thinking. In one place it differs: K2 Thinking's leaves the reasoning of the last
answer out of a whole conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import Conversation, Message


@dataclass(frozen=True)
class Written:
    """A conversation that ends with an answer, and how it is written.

    Attributes:
        before: what stands before the answer.
        asks: with what the prompt for it ends behind that.
        says: the answer and what ends it, behind that.
    """

    conversation: Conversation
    before: str
    asks: str
    says: str


def system(text: str) -> Message:
    return Message("system", text)


def user(text: str) -> Message:
    return Message("user", text)


def answer(text: str, reasoning: str = "", *calls: Mapping[str, Any]) -> Message:
    return Message("assistant", text, reasoning=reasoning, tool_calls=calls)


def result(text: str, call: Mapping[str, Any]) -> Message:
    return Message("tool", text, tool_call_id=call["id"])


def called(id_: str, name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


CLOCK: Mapping[str, Any] = {
    "type": "function",
    "function": {"name": "clock", "description": "L'heure, à midi.", "parameters": {"type": "object"}},
}
TOLD = (
    '{"type": "function", "function": {"name": "clock", "description": "L\'heure, à midi.", '
    '"parameters": {"type": "object"}}}'
)
NOON, ROME = called("a", "clock"), called("b", "clock", zone="Rome", days=[2, None], more={"é": True})


def spoken(messages: Sequence[Message], before: str, asks: str, says: str, *, tools: bool = False) -> Written:
    return Written(Conversation(tuple(messages), (CLOCK,) if tools else ()), before, asks, says)


# GLM-4.7 and GLM-4.7-Flash
GLM = "[gMASK]<sop>"
GLM_TOOLS = (
    f"{GLM}<|system|>\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    f"{TOLD}\n</tools>\n\n"
    "For each function call, output the function name and arguments within the following XML format:\n"
    "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
    "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"
)
GLM_NOON = "<tool_call>clock</tool_call>"
GLM_ROME = (
    "<tool_call>clock<arg_key>zone</arg_key><arg_value>Rome</arg_value><arg_key>days</arg_key>"
    '<arg_value>[2, null]</arg_value><arg_key>more</arg_key><arg_value>{"é": true}</arg_value></tool_call>'
)
GLM_ASKED = (system("Be brief.\n"), user(" The time? "))
GLM_BOTH = (*GLM_ASKED, answer("", "Look.", NOON, ROME), result("12:00", NOON), result("\n", ROME))
GLM_HISTORY = (
    f"{GLM_TOOLS}<|system|>Be brief.\n<|user|> The time? <|assistant|><think>Look.</think>{GLM_NOON}{GLM_ROME}"
    "<|observation|><tool_response>12:00</tool_response><tool_response>\n</tool_response><|assistant|>"
)
GLM_THINKING = (
    spoken([user("Hello?"), answer("Yes.", "A greeting.")], f"{GLM}<|user|>Hello?<|assistant|>", "<think>",
           "<think>A greeting.</think>Yes.<|user|>"),
    spoken([user(""), answer("\n 你好 😀 \n", "\n\nHm. \n")], f"{GLM}<|user|><|assistant|>", "<think>",
           "<think>Hm.</think>你好 😀<|user|>"),
    spoken([user("Hello?"), answer("Yes.", " \n")], f"{GLM}<|user|>Hello?<|assistant|>", "<think>",
           "<think></think>Yes.<|user|>"),
    spoken([user("Hello?"), answer("Yes.")], f"{GLM}<|user|>Hello?<|assistant|>", "<think>", "</think>Yes.<|user|>"),
    spoken([user("Hello?"), answer("Yes.", "A greeting."), user("Sure?"), answer("", "Hm.")],
           f"{GLM}<|user|>Hello?<|assistant|></think>Yes.<|user|>Sure?<|assistant|>", "<think>",
           "<think>Hm.</think><|user|>"),
    spoken([*GLM_ASKED, answer("I look.", "Look.", ROME)],
           f"{GLM_TOOLS}<|system|>Be brief.\n<|user|> The time? <|assistant|>", "<think>",
           f"<think>Look.</think>I look.{GLM_ROME}<|observation|>", tools=True),
    spoken([*GLM_BOTH, answer("Noon.", "So.")], GLM_HISTORY, "<think>", "<think>So.</think>Noon.<|user|>", tools=True),
)  # fmt: skip
GLM_SILENT = (
    spoken([user("Hello?"), answer("Yes."), user("Sure?"), answer(" ")],
           f"{GLM}<|user|>Hello?<|assistant|></think>Yes.<|user|>Sure?<|assistant|>", "</think>", "</think><|user|>"),
    spoken([system(""), user("a"), user("b"), answer(" Yes.\n")], f"{GLM}<|system|><|user|>a<|user|>b<|assistant|>",
           "</think>", "</think>Yes.<|user|>"),
    spoken([*GLM_ASKED, answer("", "", NOON), result("12:00", NOON), answer("Noon."), user("Rome?"),
            answer("", "", ROME)],
           f"{GLM_TOOLS}<|system|>Be brief.\n<|user|> The time? <|assistant|></think>{GLM_NOON}<|observation|>"
           "<tool_response>12:00</tool_response><|assistant|></think>Noon.<|user|>Rome?<|assistant|>", "</think>",
           f"</think>{GLM_ROME}<|observation|>", tools=True),
)  # fmt: skip

# Kimi K2 and K2 Thinking
UNASKED = "<|im_system|>system<|im_middle|>You are Kimi, an AI assistant created by Moonshot AI.<|im_end|>"
BRIEF = "<|im_system|>system<|im_middle|>Be brief.<|im_end|>"
KIMI_SAYS = UNASKED + "\n<|im_user|>{{ (tools or []) | tojson }}"
"""As much of Kimi K2's template as the renderer reads off it: the system turn of its own, and how it lists tools."""
KIMI_THINKS = (
    UNASKED
    + "<|im_user|>{{ (tools or []) | tojson(separators=(',', ':')) }}{{ '<think>' if not add_generation_prompt }}"
)


def turn(role: str, text: str) -> str:
    return f"<|im_{role}|>{role}<|im_middle|>{text}<|im_end|>"


def told(name: str, text: str) -> str:
    return f"<|im_system|>tool<|im_middle|>## Return of functions.{name}\n{text}<|im_end|>"


KIMI = "<|im_assistant|>assistant<|im_middle|>"
DECLARED = f"<|im_system|>tool_declare<|im_middle|>[{TOLD}]<|im_end|>"
CLOSE_TOLD = (
    '{"type":"function","function":{"name":"clock","description":"L\'heure, à midi.","parameters":{"type":"object"}}}'
)
CLOSE = f"<|im_system|>tool_declare<|im_middle|>[{CLOSE_TOLD}]<|im_end|>"
"""As K2 Thinking is told: without blanks."""
CALLS, CALLS_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
KIMI_NOON = "<|tool_call_begin|>functions.clock:0<|tool_call_argument_begin|>{}<|tool_call_end|>"
KIMI_ROME = (
    "<|tool_call_begin|>functions.clock:1<|tool_call_argument_begin|>"
    '{"zone": "Rome", "days": [2, null], "more": {"é": true}}<|tool_call_end|>'
)
KIMI_ASKED = (system("Be brief."), user(" The time?\n"))
KIMI_QUESTION = "<|im_user|>user<|im_middle|> The time?\n<|im_end|>"
FIRST, SECOND = called("functions.clock:0", "clock"), {**ROME, "id": "functions.clock:1"}
KIMI_INSTRUCT = (
    spoken([user("Hello?"), answer("Yes.")], f"{UNASKED}\n{turn('user', 'Hello?')}{KIMI}", "", "Yes.<|im_end|>"),
    spoken([system(""), user(""), answer(""), user("é 😀"), answer(" 你好\n")],
           f"{turn('system', '')}{turn('user', '')}{KIMI}<|im_end|>{turn('user', 'é 😀')}{KIMI}", "",
           " 你好\n<|im_end|>"),
    spoken([*KIMI_ASKED, answer("I look.", "", FIRST)], f"{DECLARED}{BRIEF}{KIMI_QUESTION}{KIMI}",
           "", f"I look.{CALLS}{KIMI_NOON}{CALLS_END}<|im_end|>", tools=True),
    spoken([user("Time?"), answer("", "", FIRST), result("12:00", FIRST), answer("Noon."), user("Rome?"),
            answer("", "", SECOND)],
           f"{DECLARED}{UNASKED}\n{turn('user', 'Time?')}{KIMI}{CALLS}{KIMI_NOON}{CALLS_END}<|im_end|>"
           f"{told('clock:0', '12:00')}{KIMI}Noon.<|im_end|>{turn('user', 'Rome?')}{KIMI}", "",
           f"{CALLS}{KIMI_ROME}{CALLS_END}<|im_end|>", tools=True),
    spoken([user("Time?"), answer("", "", FIRST, SECOND), result("12:00", FIRST), result("", SECOND), answer("Noon.")],
           f"{DECLARED}{UNASKED}\n{turn('user', 'Time?')}{KIMI}{CALLS}{KIMI_NOON}{KIMI_ROME}{CALLS_END}<|im_end|>"
           f"{told('clock:0', '12:00')}{told('clock:1', '')}{KIMI}", "", "Noon.<|im_end|>", tools=True),
)  # fmt: skip
KIMI_THINKING = (
    spoken([user("Hello?"), answer("Yes.", "A greeting.")], f"{UNASKED}{turn('user', 'Hello?')}{KIMI}", "",
           "<think>A greeting.</think>Yes.<|im_end|>"),
    spoken([system("Be brief."), user("Hello?"), answer(" Yes.\n", "A greeting."), user("Sure?"), answer("Quite.")],
           f"{BRIEF}{turn('user', 'Hello?')}{KIMI}<think></think> Yes.\n<|im_end|>{turn('user', 'Sure?')}{KIMI}", "",
           "<think></think>Quite.<|im_end|>"),
    spoken([user("Time?"), answer("", "Look.", FIRST), result("12:00", FIRST), answer("So:", "Again.", SECOND)],
           f"{CLOSE}{UNASKED}{turn('user', 'Time?')}{KIMI}<think>Look.</think>{CALLS}{KIMI_NOON}{CALLS_END}"
           f"<|im_end|>{told('clock:0', '12:00')}{KIMI}", "",
           f"<think>Again.</think>So:{CALLS}{KIMI_ROME}{CALLS_END}<|im_end|>", tools=True),
    spoken([user("Time?"), answer("", "Look.", FIRST), result("12:00", FIRST), answer("Noon.", "So."), user("Rome?"),
            answer("Later.", "Hm.")],
           f"{CLOSE}{UNASKED}{turn('user', 'Time?')}{KIMI}<think></think>{CALLS}{KIMI_NOON}{CALLS_END}<|im_end|>"
           f"{told('clock:0', '12:00')}{KIMI}<think></think>Noon.<|im_end|>{turn('user', 'Rome?')}{KIMI}", "",
           "<think>Hm.</think>Later.<|im_end|>", tools=True),
)  # fmt: skip
