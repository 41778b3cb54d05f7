"""Four suites for every renderer, on chat templates: those that trl carries, of models of 2026 too, and shared ones.

Conversations are drawn, and the template alone judges: what it writes for a conversation, and for the prompt before an
answer. An answer is what stands between the two, up to the token that ends the turn. Where no template is at hand,
conversations written out by hand judge.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jinja2
from finetooth_core.plugins import manager
from finetooth_core.plugins.builders import built, options_model
from finetooth_hooks import Conversation, Message
from finetooth_kit import FakeContext, draws
from finetooth_kit.templates import (
    assert_trains,
    conversations,
    extends,
    official,
    says_any,
    spells_special,
    template_tokenizer,
)
from hypothesis import HealthCheck, given, settings

sys.path.insert(0, str(Path(__file__).parent))

from written_conversations import (
    GLM_SILENT,
    GLM_THINKING,
    KIMI_INSTRUCT,
    KIMI_SAYS,
    KIMI_THINKING,
    KIMI_THINKS,
    Written,
)
from written_newer import (
    GLM_5_SILENT,
    GLM_5_THINKING,
    K2_5_SAYS,
    K2_5_SILENT,
    K2_5_THINKING,
    MINI_SAYS,
    MINIMAX,
    QWEN_CODER,
    V3_2_SILENT,
    V3_2_THINKING,
    V4_SILENT,
    V4_THINKING,
)

SUITES = ("template", "mask", "parse", "extension")
BAR = "\uff5c"  # what DeepSeek writes for a vertical line
SPELLED = re.compile(rf"<[|{BAR}][^<>|\s{BAR}]{{1,40}}[|{BAR}]>|</?s>|<[a-z]+_of_[a-z]+>|\[gMASK\]|<sop>")
"""What looks like a special token in a template."""
MARKS = ("think>", "<tool", "</tool", "<arg_", "</arg_", "<function", "</function", "<parameter", "</parameter")
"""What a text of the markup's own is: hypothesis tries literals of the code, too."""
CALLS: Mapping[str, Any] = {"tools": True}
ALONE: Mapping[str, Any] = {**CALLS, "content_with_calls": False}
THOUGHTS: Mapping[str, Any] = {**CALLS, "reasoning": True}
THINKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


@dataclass(frozen=True)
class Case:
    """How a template is spoken.

    Attributes:
        renderer, options: by which renderer.
        draw: of `conversations`: what the markup has a place for.
        eos, bos: what the template calls so.
        special, plain: tokens of the family that the template does not spell, or that are not special.
        variables: what the template reads that the options mean.
        ends: the renderer writes the token with which the model stops behind the last answer, and the template none.
        opens: with what the template ends a prompt, and answers do not begin; the renderer leaves it out.
        joined: the file is written over several lines, which its authors join.
        parts: the template reads lists of parts alone.
        called: reasoning stands before calls only.
        shrinks: why a prompt may not begin with all that was written before; empty: it does.
        without: what is not compared here, and why.
        escaped: characters that the renderer escapes or refuses in texts of arguments, and the template does not.
        written: conversations written out by hand, in place of a template.
        template: what the renderer reads off the model's own template, where that is not at hand.
    """

    renderer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    draw: Mapping[str, Any] = field(default_factory=dict)
    eos: str = "<|im_end|>"
    bos: str | None = None
    special: Sequence[str] = ()
    plain: Sequence[str] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    ends: bool = False
    opens: str = ""
    joined: bool = False
    parts: bool = False
    called: bool = False
    shrinks: str = ""
    without: str = ""
    escaped: str = ""
    written: Sequence[Written] = ()
    template: str = ""


GONE = "reasoning of answers to earlier questions goes"
MOVES = "tools and the system message stand before the last question"
RETURNS = "`<|return|>` behind the last answer is `<|end|>` behind earlier ones"
FRAMES = "results end otherwise before an answer than before its prompt"
ONCE = "calls and results are opened once in a conversation"
ONE_WAY = "tools and reasoning: in the package's own tests, since the template takes calls as text or null content"
GEMMA4: Mapping[str, Any] = {"eos": "<eos>", "bos": "<bos>", "special": (
    "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
    "<tool_response|>", "<|turn>", "<turn|>", '<|"|>',
)}  # fmt: skip
GEMMA4_CALLS: Mapping[str, Any] = {**GEMMA4, "draw": {**ALONE, "reasoning": True}, "shrinks": GONE}
GEMMA4_TEXT: Mapping[str, Any] = {**GEMMA4, "eos": "<turn|>", "draw": ALONE}
DEEPSEEK: Mapping[str, Any] = {"bos": f"<{BAR}begin▁of▁sentence{BAR}>", "eos": f"<{BAR}end▁of▁sentence{BAR}>"}
FENCED: Mapping[str, Any] = {**DEEPSEEK, "opens": "<think>\n", "shrinks": ONCE, "without": ONE_WAY}
PHI3: Mapping[str, Any] = {
    "bos": "<s>", "eos": "<|endoftext|>", "special": ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
}  # fmt: skip
LLAMA3: Mapping[str, Any] = {"bos": "<|begin_of_text|>", "eos": "<|eot_id|>"}
LFM2: Mapping[str, Any] = {"bos": "<|startoftext|>", "escaped": "\0", "special": (
    "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>", "<|tool_response_start|>",
    "<|tool_response_end|>", "<think>", "</think>",
)}  # fmt: skip
LFM25: Mapping[str, Any] = {**LFM2, "draw": THOUGHTS, "shrinks": GONE, "escaped": "\0\n\r\\'"}
GEMMA: Mapping[str, Any] = {"bos": "<bos>", "eos": "<eos>"}
GLM: Mapping[str, Any] = {
    "eos": "<|endoftext|>", "plain": THINKS, "ends": True, "draw": THOUGHTS, "shrinks": GONE,
    "special": ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
}  # fmt: skip
LLAMA: Mapping[str, Any] = {"bos": "<s>", "eos": "</s>"}
MISTRAL: Mapping[str, Any] = {**LLAMA, "draw": ALONE, "shrinks": MOVES, "special": (
    "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]", "[CALL_ID]", "[ARGS]",
)}  # fmt: skip
COHERE: Mapping[str, Any] = {"eos": "<|END_OF_TURN_TOKEN|>", "bos": "<BOS_TOKEN>"}
BY_HAND = "no template is at hand: conversations written out by hand, compared with the models' own template once"
GLM_4_7: Mapping[str, Any] = {**GLM, "special": (*GLM["special"], "[gMASK]", "<sop>"), "without": BY_HAND}
DSML: Mapping[str, Any] = {
    **DEEPSEEK, "plain": ("<think>", "</think>"), "without": BY_HAND,
    "special": (f"<{BAR}User{BAR}>", f"<{BAR}Assistant{BAR}>", f"{BAR}DSML{BAR}"),
}  # fmt: skip
DSML_SILENT: Mapping[str, Any] = {**DSML, "draw": CALLS}
DSML_THINKING: Mapping[str, Any] = {**DSML, "draw": THOUGHTS, "shrinks": GONE}
KIMI: Mapping[str, Any] = {
    "plain": ("<think>", "</think>"), "without": BY_HAND,
    "special": (
        "<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>",
    ),
}  # fmt: skip
MINI: Mapping[str, Any] = {
    "eos": "[e~[", "special": ("]~!b[", "]~b]"), "draw": THOUGHTS, "shrinks": GONE, "without": BY_HAND,
    "plain": ("<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"),
}  # fmt: skip
HARMONY: Mapping[str, Any] = {"eos": "<|return|>", "bos": "<|startoftext|>", "special": (
    "<|call|>", "<|constrain|>", "<|end|>", "<|channel|>", "<|start|>", "<|message|>",
)}  # fmt: skip
QWEN: Mapping[str, Any] = {"plain": THINKS}
CODER: Mapping[str, Any] = {**QWEN, "special": ("<|im_start|>",), "without": BY_HAND}
THINKING: Mapping[str, Any] = {"plain": THINKS, "draw": THOUGHTS, "shrinks": GONE}
NEMOTRON = Case("nemotron3", {"thinking": True}, **THINKING)
DATED: Mapping[str, Any] = {**LLAMA3, "draw": {**ALONE, "calls": 1}}
CASES: Mapping[str, Case] = {
    "cohere": Case("jinja", **COHERE),
    "cohere2": Case("cohere2", **COHERE, without="tools: Tiny Aya's template has none; see Command R7B's tests"),
    "deepseek_r1_distill": Case("deepseek_r1", **FENCED),
    "deepseek-r1-distill-qwen": Case("deepseek_r1", **{**FENCED, "opens": "<think>\n</think>"}),
    "deepseekv3": Case("deepseek_v3", **FENCED),
    "diffusion_gemma": Case("jinja", **{**GEMMA4_CALLS, "eos": "<turn|>"}),
    "gemma": Case("gemma", draw={"system": False}, **GEMMA),
    "gemma3": Case("gemma", {"system": True}, **GEMMA),
    "gemma4": Case("gemma4", called=True, **GEMMA4_CALLS),
    "gemma4_v2": Case("jinja", **GEMMA4_TEXT),
    "gemma4_v3": Case("gemma4", called=True, **GEMMA4_CALLS),
    "gemma4_v4": Case("gemma4", called=True, **GEMMA4_CALLS),
    "gemma4_v5": Case("gemma4", **GEMMA4_CALLS),
    "glm4moe": Case("glm4_moe", **GLM),
    "gptoss": Case("harmony", {"today": "2026-01-15"}, {**ALONE, "calls": 1}, **HARMONY, shrinks=RETURNS),
    "idefics3": Case("jinja", eos="<end_of_utterance>", bos="<|begin_of_text|>", parts=True),
    "lfm2": Case("lfm2", **LFM2, without="tools: this revision writes no calls"),
    "lfm2_2_5": Case("lfm2", **LFM25),
    "lfm2_2_5_v2": Case("lfm2", **LFM25),
    "lfm2_2_5_vl": Case("lfm2", **LFM25),
    "lfm2_v2": Case("lfm2", draw=CALLS, **LFM2),
    "llama3": Case("llama3", **LLAMA3),
    "llama3_1": Case("llama3", {"dated": True}, **DATED),
    "llama3_2": Case("llama3", {"dated": True, "today": "15 Jan 2026"}, **DATED),
    "llava_next": Case("jinja", eos="</s>", bos="<s>", parts=True),
    "muse_glimmer": Case("jinja", eos="<|end|>", bos="<|start|>", draw={**ALONE, "reasoning": True}),
    "nemotron_3_5_lightning": NEMOTRON,
    "nemotron_3_nano": NEMOTRON,
    "nemotron_3_super": NEMOTRON,
    "nemotron_3_ultra": NEMOTRON,
    "phi3": Case("phi3", **PHI3),
    "phi3_5": Case("phi3", {"empty_system": False}, **PHI3),
    "qwen2_5": Case("qwen", draw=CALLS, **QWEN),
    "qwen2_5_vl": Case("qwen", **QWEN, without="tools: the template has none; `qwen` writes Qwen2.5's"),
    "qwen3": Case("qwen3", **THINKING),
    "qwen3_5_nothink": Case("qwen3_5", draw=CALLS, shrinks="empty think blocks of earlier answers go", **QWEN),
    "qwen3_5_think": Case("qwen3_5", **THINKING),
    "qwen3_6": Case("qwen3_5", **THINKING),
    "qwen3_8": Case("qwen3_5", **{**THINKING, "shrinks": ""}),
    "qwen3_instruct_2507": Case("qwen3_instruct", draw=CALLS, **QWEN),
    "qwen3_vl": Case("jinja", draw=CALLS, **QWEN),
    "smolvlm": Case("jinja", eos="<end_of_utterance>", bos="<|im_start|>", parts=True),
    # shared ones that trl does not have
    "alpaca": Case("alpaca", **LLAMA),
    "chatml": Case("chatml"),
    "deepseek-v3.1": Case("deepseek_v3_1", draw=CALLS, **DEEPSEEK),
    "glm-4.6": Case("glm4_moe", **GLM),
    "hermes-2-pro-tools": Case("hermes", draw=ALONE, bos="<|begin_of_text|>", shrinks=FRAMES),
    "llama-2-chat": Case("llama2", joined=True, **LLAMA),
    "mistral-nemo-2407": Case("mistral", {"version": "v3-tekken", "system": "asked"}, **MISTRAL),
    "mistral-small-3.2": Case("mistral", {"version": "small-3.2"}, **MISTRAL),
    "mistral-v1": Case("mistral", {"version": "v1", "system": "asked"}, **LLAMA),
    "mistral-v3": Case("mistral", {"version": "v3", "system": "asked"}, **MISTRAL),
    "mistral-v3-tekken": Case("mistral", {"version": "v3-tekken", "system": "asked"}, **MISTRAL),
    "mistral-v7-tekken": Case("mistral", {"version": "v7-tekken"}, **{**MISTRAL, "draw": {}, "shrinks": ""}),
    "phi-4-reasoning": Case("phi4", special=("<|im_sep|>", "<|endoftext|>"), plain=("<think>", "</think>")),
    "smollm3": Case("smollm3", plain=("<think>", "</think>")),
    "vicuna": Case("vicuna", joined=True, **LLAMA),
    "zephyr": Case("zephyr", joined=True, **LLAMA),
    # written out by hand
    "glm-4.7": Case("glm4_7", {"thinking": True}, written=GLM_THINKING, **GLM_4_7),
    "glm-4.7, not thinking": Case("glm4_7", written=GLM_SILENT, **{**GLM_4_7, "draw": CALLS, "shrinks": ""}),
    "glm-5.2": Case("glm5", {"effort": "max"}, written=GLM_5_THINKING, **GLM_4_7),
    "glm-5.2, not thinking": Case(
        "glm5", {"thinking": False}, written=GLM_5_SILENT, **{**GLM_4_7, "draw": CALLS, "shrinks": ""}
    ),
    "deepseek-v3.2": Case("deepseek_v3_2", written=V3_2_SILENT, **DSML_SILENT),
    "deepseek-v3.2, thinking": Case("deepseek_v3_2", {"thinking": True}, written=V3_2_THINKING, **DSML_THINKING),
    "deepseek-v4": Case("deepseek_v4", written=V4_SILENT, **DSML_SILENT),
    "deepseek-v4, thinking": Case("deepseek_v4", {"thinking": True}, written=V4_THINKING, **DSML_THINKING),
    "qwen3-coder": Case("qwen3_coder", draw=CALLS, written=QWEN_CODER, **CODER),
    "minimax-m2.5": Case("minimax_m2", written=MINIMAX, template=MINI_SAYS, **MINI),
    "kimi-k2": Case("kimi_k2", draw=CALLS, written=KIMI_INSTRUCT, template=KIMI_SAYS, **KIMI),
    "kimi-k2-thinking": Case(
        "kimi_k2", draw=THOUGHTS, written=KIMI_THINKING, template=KIMI_THINKS, shrinks=GONE, **KIMI
    ),
    "kimi-k2.5": Case("kimi_k2", draw=THOUGHTS, written=K2_5_THINKING, template=K2_5_SAYS, shrinks=GONE, **KIMI),
    "kimi-k2.5, not thinking": Case(
        "kimi_k2", {"version": "k2.5", "thinking": False}, CALLS, written=K2_5_SILENT, **KIMI
    ),
}  # fmt: skip


def carried() -> dict[str, Path]:
    """Files of templates by name: of trl, but those for training, and shared ones that differ; none without them."""
    spec = find_spec("trl")
    installed = spec.submodule_search_locations if spec is not None else None
    folders = [Path(folder) / "chat_templates" for folder in installed or ()]
    shared = Path(os.environ.get("FT_SHARED", Path(__file__).parents[3] / "shared")) / "data/templates"
    known, files = set[str](), dict[str, Path]()
    for folder in (*folders, shared):
        for file in sorted(folder.glob("*.jinja")):
            text = file.read_text(encoding="utf-8").strip()
            if not file.stem.endswith("_training") and text not in known:
                files[file.stem] = file
                known.add(text)
    return files


def texts_of_arguments(messages: Sequence[Message]) -> str:
    """All values of arguments of calls, one behind the other."""
    calls = [call for message in messages for call in message.tool_calls]
    return "".join(str(value) for call in calls for value in call["function"]["arguments"].values())


class Judged:
    """A template and the renderer that speaks it."""

    def __init__(self, name: str) -> None:
        self.case = case = CASES[name]
        template = case.template if case.written else carried()[name].read_text(encoding="utf-8")
        if case.joined:
            template = template.replace("    ", "").replace("\n", "")
        ends = [case.eos, *([case.bos] if case.bos else [])]
        spelled = dict.fromkeys([*SPELLED.findall(template), *case.special, *ends])
        special = [token for token in spelled if token not in case.plain]
        self.tokenizer = template_tokenizer(template, special, plain=case.plain, eos=case.eos, bos=case.bos)
        every = manager.start().catalog.all("renderer")
        (registered,) = [known for known in every if known.entry.name == case.renderer]
        context: Any = FakeContext(Path(mkdtemp()), tokenizer=self.tokenizer)
        self.renderer: Any = built(registered, options_model(registered.entry)(**case.options), context)
        self.marks = (*special, *case.plain, *MARKS)

    def drawn(self, check: Callable[[Conversation], None]) -> None:
        """Check conversations whose texts spell no markup and that the template takes, or those written by hand."""
        for written in self.case.written:
            check(written.conversation)
        if self.case.written:
            return

        @settings(deadline=None, max_examples=draws(8), derandomize=True, suppress_health_check=list(HealthCheck))
        @given(conversations(turns=2, **self.case.draw))
        def each(drawn: Conversation) -> None:
            messages = drawn.messages
            if self.case.called:
                messages = tuple(m if m.tool_calls else replace(m, reasoning="") for m in messages)
            conversation = Conversation(messages, drawn.tools)
            said = says_any(conversation, self.marks) or set(texts_of_arguments(messages)) & set(self.case.escaped)
            if not said and not spells_special(self.tokenizer, conversation):
                check(conversation)

        each()

    def answers(self, check: Callable[[Conversation, str, str], None]) -> None:
        """Check each answer of each conversation: what ends with it, the prompt before it and the whole, as texts."""
        for written in self.case.written:
            check(written.conversation, written.before + written.asks, written.before + written.says)
        if self.case.written:
            return
        checked = 0

        def each(conversation: Conversation) -> None:
            nonlocal checked
            messages, tools = conversation.messages, conversation.tools
            for i, message in enumerate(messages):
                if message.role != "assistant" or not i:
                    continue
                until = Conversation(messages[: i + 1], tools)
                try:
                    texts = self.text(Conversation(messages[:i], tools), ask=True), self.text(until)
                except (jinja2.TemplateError, TypeError):  # Hermes' breaks off without tools
                    continue
                check(until, *texts)
                checked += 1

        self.drawn(each)
        assert checked

    def text(self, conversation: Conversation, *, ask: bool = False) -> str:
        """By the template, and behind the last answer what ends it."""
        variables = dict(self.case.variables)
        text = official(self.tokenizer, conversation, ask=ask, parts=self.case.parts, **variables)[1]
        if self.case.ends and not ask:
            text += "<|observation|>" if conversation.messages[-1].tool_calls else "<|user|>"
        return text.removesuffix(self.case.opens) if ask else text

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, special=True))

    def cell(self, suite: str) -> tuple[bool, str]:
        """What the table says; a failure is raised."""
        return (self.template, self.mask, self.parse, self.extension)[SUITES.index(suite)]()

    def template(self) -> tuple[bool, str]:
        """Tokens are the template's, of the whole and of the prompt."""

        def check(conversation: Conversation, prompt: str, whole: str) -> None:
            assert self.renderer.render(conversation).tokens == self.ids(whole), whole
            before = conversation.messages[:-1]
            assert self.renderer.prompt(before, conversation.tools) == self.ids(prompt), prompt

        self.answers(check)
        return True, ""

    def mask(self) -> tuple[bool, str]:
        """What trains of the last answer is what stands behind the prompt, with the token that ends it."""
        stops = [self.tokenizer.decode([id_]) for id_ in self.renderer.stop_ids]
        checked = 0

        def check(conversation: Conversation, prompt: str, whole: str) -> None:
            nonlocal checked
            if not whole.startswith(prompt):  # its think block is not the prompt's: the packages' own tests
                return
            answer = whole[len(prompt) :]
            end = min(answer.find(stop) + len(stop) for stop in stops if stop in answer)
            assert_trains(self.renderer, self.tokenizer, conversation, [answer[:end]], train_on="last")
            checked += 1

        self.answers(check)
        assert checked
        return True, ""

    def parse(self) -> tuple[bool, str]:
        """An answer as it is written gives back its content, reasoning and calls."""
        checked = 0

        def check(conversation: Conversation, prompt: str, whole: str) -> None:
            nonlocal checked
            before, tokens = self.ids(prompt), self.renderer.render(conversation).tokens
            if tokens[: len(before)] == before:
                parsed = self.renderer.parse(tokens[len(before) :])
                assert (said(parsed.message), parsed.stop) == (said(conversation.messages[-1]), "stop"), whole
                checked += 1

        self.answers(check)
        assert checked
        return True, ""

    def extension(self) -> tuple[bool, str]:
        """A longer conversation begins with the shorter one, or the renderer does not promise it."""
        grew: list[bool] = []
        self.drawn(lambda conversation: grew.append(extends(self.renderer, conversation)))
        assert self.renderer.extension == (not self.case.shrinks)
        assert not self.renderer.extension or all(grew)
        return self.renderer.extension, self.case.shrinks


def said(message: Message) -> tuple[Any, ...]:
    """What an answer says, whatever blanks a markup takes away, and whether a value is its text or itself."""

    def plain(value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except ValueError:
            return value

    calls = [call["function"] for call in message.tool_calls]
    named = [(call["name"], {key: plain(value) for key, value in call["arguments"].items()}) for call in calls]
    return message.content.strip(), message.reasoning.strip(), named


def compared(case: Case) -> str:
    """What the conversations have."""
    parts = {"tools": "calls", "reasoning": "reasoning"}
    return ", ".join(["text", *(word for key, word in parts.items() if case.draw.get(key))])
