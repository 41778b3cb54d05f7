"""What axolotl reads out of a dataset's rows and how it writes them, by its `type` and the kind of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetooth_importer.tools import axolotl_alpaca
from finetooth_importer.tools.axolotl_keys import TABLES

PAIRS = ("dpo", "orpo", "simpo", "cpo", "rm")
ROLES = ("system", "user", "assistant", "tool")
MARKUP: Mapping[str, Any] = {"chatml": {"name": "chatml", "default_system": ""}, "llama3": "llama3"}
"""Types that write their own markup, whatever that of the model is, by the renderer with the same."""

PAIR_PROMPTS: Mapping[str, str] = TABLES["pair_prompts"]
"""The column with the prompt of a pair, by the second word of the type; empty for the one that the row has."""
LABELLED_PROMPTS: Mapping[str, str] = TABLES["labelled_prompts"]
"""The same of an answer with a label."""

EBFT_ROWS: Mapping[str, Mapping[str, Any]] = TABLES["ebft_rows"]
"""Functions that make rows of EBFT, by the method that reads them."""

INSTRUCTIONS: Mapping[str, Mapping[str, str]] = TABLES["instructions"]
"""Columns of types whose rows are instructions by other names."""

BY_HAND = "finetooth has no format for such rows: name their columns in data.format, ft plugins list --kind format"
PATTERN = "axolotl fills this template; finetooth reads texts unchanged: write the filled template into the rows"
FUNCTION = "finetooth does not run your function: write the rows that it returns"
OWN_MARKUP = "axolotl always writes rows of this type in this markup"


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        format: the pick; None where the rows' own columns show it.
        renderer: the pick of what writes them, where the type says so.
        lost: why the type is not taken; empty if it is.
        patterns: keys of the type with a pattern that texts are put into.
        method: options of the method that reads such rows.
    """

    format: Any = None
    renderer: Any = ""
    lost: str = ""
    patterns: tuple[str, ...] = ()
    method: Mapping[str, Any] = field(default_factory=dict)


def reading(dataset: Mapping[str, Any], method: str, key: str, own_prompt: bool) -> Reading:
    """How the rows of a dataset are read.

    Args:
        dataset: the dataset, with `type`.
        method: as it is called here.
        key: of the configuration, `datasets`.
        own_prompt: all rows that train are written in Alpaca's prompt.
    """
    kind = dataset.get("type")
    if key == "pretraining_dataset" or kind in ("completion", "pretrain"):
        column = dataset.get("field") or dataset.get("text_column")
        return Reading({"name": "text", "column": column} if column and column != "text" else "text")
    if kind is None or kind == "":
        return Reading()
    if made := EBFT_ROWS.get(method, {}).get(str(kind)):
        return Reading(made["format"], method=made.get("method", {}))
    if method in PAIRS or method == "kto":
        return _judged(dataset, kind, method)
    if isinstance(kind, dict):
        return _columns(kind)
    return _supervised(dataset, str(kind), own_prompt)


def _supervised(dataset: Mapping[str, Any], kind: str, own_prompt: bool) -> Reading:
    plain = kind.partition(":")[0]
    if plain in INSTRUCTIONS:
        return Reading({"name": "instruction", **INSTRUCTIONS[plain]})
    if plain in ("alpaca", "alpaca_chat", "alpaca_chat.load_concise", "alpaca_instruct", "gpteacher", "oasst"):
        return Reading(axolotl_alpaca.FORMAT if own_prompt and kind == "alpaca" else "instruction")
    if plain.startswith(("chat_template", "sharegpt", "messages.chat")):
        return Reading(chat(dataset))
    if plain.startswith("input_output"):
        return Reading("segments")
    if plain.startswith("stepwise"):
        return Reading("stepwise")
    return Reading(lost=FUNCTION if plain.endswith(".transform") else BY_HAND)


def _judged(dataset: Mapping[str, Any], kind: Any, method: str) -> Reading:
    """Of pairs, and of answers with a label."""
    name = "labelled" if method == "kto" else "preference"
    own = ("prompt", "completion", "label") if method == "kto" else ("prompt", "chosen", "rejected")
    if isinstance(kind, dict) or kind == "user_defined.default":
        fields = {**dataset, **(kind if isinstance(kind, dict) else {})}
        columns = {column: str(fields.get(f"field_{column}") or column) for column in own}
        patterns = tuple(key for key in ("prompt", *own[1:]) if fields.get(f"{key}_format"))
        return Reading({"name": name, **columns, "style": "raw"}, patterns=tuple(f"{key}_format" for key in patterns))
    markup, _, shape = str(kind).removeprefix("bradley_terry.").rpartition(".")
    if shape in ("chat_template", "default") and (markup == "chat_template" or not markup):
        return Reading({"name": name, **_named_columns(dataset, own, prompt="" if method == "rm" else "messages")})
    prompts = LABELLED_PROMPTS if method == "kto" else PAIR_PROMPTS
    if markup not in (*MARKUP, "chat_template") or shape not in prompts:
        return Reading(lost=BY_HAND)
    columns = {"prompt": prompts[shape]} if prompts[shape] else {}
    if method == "kto" and shape == "argilla_chat":
        columns["completion"] = ""
    named = _named_columns(dataset, own, prompt="") if markup == "chat_template" else {}
    return Reading({"name": name, **columns, **named}, renderer=MARKUP.get(markup, ""))


def _named_columns(dataset: Mapping[str, Any], own: tuple[str, ...], prompt: str) -> dict[str, Any]:
    """Columns and keys of messages as a dataset names them."""
    columns = {column: dataset[f"field_{column}"] for column in own if dataset.get(f"field_{column}")}
    column = dataset.get("field_messages") or prompt
    about = chat({key: value for key, value in dataset.items() if key != "field_messages"})
    return {
        **({"prompt": column} if column else {}),
        **columns,
        **({key: value for key, value in about.items() if key in ("fields", "roles")} if about != "chat" else {}),
    }


def chat(dataset: Mapping[str, Any]) -> Any:
    """The format of conversations, with what a dataset says of their messages."""
    options: dict[str, Any] = {}
    if dataset.get("field_messages"):
        options["column"] = dataset["field_messages"]
    mapped = dataset.get("message_property_mappings") or {}
    names = {
        "role": mapped.get("role") or dataset.get("message_field_role"),
        "content": mapped.get("content") or dataset.get("message_field_content"),
        "reasoning": mapped.get("reasoning_content") or dataset.get("field_thinking"),
    }
    known = ("role", "content", "reasoning", "reasoning_content", "thinking")  # read by themselves
    fields = {name: value for name, value in names.items() if value and value not in known}
    if fields:
        options["fields"] = fields
    roles = {
        str(theirs): role
        for role, all_of_it in (dataset.get("roles") or {}).items()
        for theirs in (all_of_it if isinstance(all_of_it, list) else [all_of_it])
        if theirs != role and role in ROLES
    }
    if roles:
        options["roles"] = roles
    if dataset.get("roles_to_train") not in (None, ["assistant"], ["gpt", "assistant"]):
        options["train_roles"] = dataset["roles_to_train"]
    if dataset.get("message_field_training"):
        options["train_field"] = dataset["message_field_training"]
    if dataset.get("message_field_training_detail"):
        options["ranges_field"] = dataset["message_field_training_detail"]
    if dataset.get("split_thinking"):
        options["split_thinking"] = True
    return {"name": "chat", **options} if options else "chat"


def _columns(kind: Mapping[str, Any]) -> Reading:
    """Of a type that names the columns itself."""
    names = {"instruction": "field_instruction", "input": "field_input", "output": "field_output"}
    columns = {ours: kind[theirs] for ours, theirs in names.items() if kind.get(theirs)}
    if kind.get("field_system"):
        columns["system_column"] = kind["field_system"]
    if kind.get("system_prompt"):
        columns["system"] = kind["system_prompt"]
    patterns = tuple(key for key in ("format", "no_input_format", "system_format") if kind.get(key))
    return Reading({"name": "instruction", **columns} if columns else "instruction", patterns=patterns)
