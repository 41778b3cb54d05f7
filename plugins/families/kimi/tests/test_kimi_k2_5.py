"""Kimi K2.5 in `kimi_k2`, by hand; whole conversations stand in tests/families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Conversation, DataError, Message, RecipeError
from finetooth_kimi.declarations import declared
from finetooth_kimi.renderer import KimiK2, KimiOptions, build
from finetooth_kit import ByteTokenizer, FakeContext
from finetooth_kit.templates import assert_reads_back

ASK, SAY = Message("user", "The time?"), Message("assistant", "Noon.", "Look.")
AGAIN, SURE = Message("user", "Sure?"), Message("assistant", "Quite.")
TEMPLATE = (
    "{{ '<|im_system|>tool_declare<|im_middle|>' + tools_ts_str + '<|im_end|>' if tools }}{% for m in messages %}"
    "<|im_{{ m.role }}|>{{ m.role }}<|im_middle|>{{ '<think></think>' if m.role == 'assistant' }}{{ m.content }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>"
    "<think>{{ '</think>' if thinking is false }}{% endif %}"
)


def function(name: str = "clock", **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def built(**options: Any) -> KimiK2:
    return KimiK2(ByteTokenizer(chat_template=None), KimiOptions(version="k2.5", **options))


def trained(renderer: KimiK2, *messages: Message) -> str:
    rendered = renderer.render(Conversation(messages))
    return renderer.tokenizer.decode([t for t, w in zip(rendered.tokens, rendered.weights, strict=True) if w])


def test_what_trains() -> None:
    """What the prompt holds of the think block does not."""
    assert trained(built(), ASK, SAY) == "Look.</think>Noon.<|im_end|>"
    assert trained(built(), AGAIN, SURE) == "</think>Quite.<|im_end|>"
    assert trained(built(), ASK, SAY, AGAIN, SURE) == "Noon.<|im_end|></think>Quite.<|im_end|>"
    silent = built(thinking=False)
    assert trained(silent, AGAIN, SURE, AGAIN, SURE) == "Quite.<|im_end|>Quite.<|im_end|>"
    assert silent.extension and built(keep_reasoning=True).extension and not built().extension
    assert silent.render(Conversation((ASK, SAY, AGAIN, SURE))).remarks == ("reasoning left out",)
    with pytest.raises(DataError, match="no reasoning while thinking is off"):
        silent.render(Conversation((ASK, SAY)))


def test_an_answer_is_read_back() -> None:
    assert_reads_back(built(), Conversation((ASK, SAY)), lambda message: message)
    assert_reads_back(built(), Conversation((AGAIN, SURE)), lambda message: message)
    assert_reads_back(built(thinking=False), Conversation((AGAIN, SURE)), lambda message: message)
    assert built().read("Hm.") == Message("assistant", "", reasoning="Hm.")


@pytest.mark.parametrize(("thinking", "opened"), [(True, "<think>"), (False, "<think></think>")])
def test_the_version_is_that_of_the_template(tmp_path: Path, thinking: bool, opened: str) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer(chat_template=TEMPLATE))
    renderer = build(KimiOptions(thinking=thinking), context)
    assert renderer.version == "k2.5" and not context.notes
    prompt = renderer.tokenizer.decode(renderer.prompt((ASK,)))
    assert prompt == f"<|im_user|>user<|im_middle|>The time?<|im_end|><|im_assistant|>assistant<|im_middle|>{opened}"


def test_others_cannot_leave_thinking_out(tmp_path: Path) -> None:
    context = FakeContext(tmp_path, tokenizer=ByteTokenizer(chat_template=None))
    with pytest.raises(RecipeError, match=r"data\.renderer\.thinking: only Kimi K2\.5 thinks or not"):
        build(KimiOptions(thinking=False), context)


def test_tools_are_told_in_typescript() -> None:
    """As its own tokenizer declares them: fields that must be given come first, each by its name."""
    days = {"type": "integer", "minimum": 1, "maximum": 9, "default": 2, "description": "How many.\n\nAt most 9."}
    zone = {"anyOf": [{"enum": ["UTC", None]}, {"type": ["string", "object"]}], "default": {"b": 1, "a": "é"}}
    at = {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"x": {}}, "description": "Where."}}
    names = {"type": "array", "items": {"type": "string"}}
    tool = function(
        type="object", required=["zone", "names"], additionalProperties=False,
        properties={"days": days, "at": at, "zone": zone, "names": names, "Any": True},
    )  # fmt: skip
    tool["function"]["description"] = "The time."
    assert declared((tool, function("now", additionalProperties={"type": "number"}), function("none"))) == (
        "# Tools\n\n## functions\nnamespace functions {\n// The time.\ntype clock = (_: {\n"
        "  names: Array<string>,\n"
        '  // Default: {"b": 1, "a": "é"}\n  zone: "UTC" | None | string | {},\n'
        "  Any?: any,\n"
        "  // minItems: 1\n  at?: Array<\n    // Where.\n    {\n      x?: any\n    }\n  >,\n"
        "  // How many.\n\n  // At most 9.\n  // maximum: 9, minimum: 1\n  // Default: 2\n  days?: number,\n"
        "  [k: string]: never\n}) => any;\n"
        "type now = (_: {\n  [k: string]: number\n}) => any;\ntype none = (_: {}) => any;\n}\n"
    )


@pytest.mark.parametrize("schema", [{"$ref": "#/$defs/a"}, {"title": "A"}])
def test_a_schema_without_a_type_is_refused(schema: dict[str, Any]) -> None:
    tool = function(type="object", properties={"a": schema})
    with pytest.raises(DataError, match=r"tools: renderer kimi_k2 has no way to declare .*without \$ref"):
        built().prompt((ASK,), (tool,))
