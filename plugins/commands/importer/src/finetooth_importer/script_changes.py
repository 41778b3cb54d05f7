"""What a script does to its model and tokenizer besides its configurations: keys by the names of what it calls."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from finetooth_importer.expressions import UNKNOWN, Assigned, called_of, value_of

TRAINERS = "other trainers"
"""The key under which the reader of scripts says that there are several trainers."""
CHANGES: Mapping[str, str] = {
    "get_chat_template": "data.renderer names the markup: chatml, llama3, gemma, qwen3 and others",
    "setup_chat_format": "set data.renderer: chatml and model.added_tokens",
    "clone_chat_template": "set data.renderer: {name: jinja, template: FILE} and model.added_tokens",
    "chat_template": "set data.renderer: {name: jinja, template: FILE}",
    "add_tokens": "set model.added_tokens",
    "add_special_tokens": "set model.added_tokens or model.special_tokens",
    "resize_token_embeddings": "model.added_tokens has its embeddings",
    "IA3Config": "set adapter: ia3",
    "OFTConfig": "set adapter: oft",
    "BOFTConfig": "set adapter: boft",
    "VeraConfig": "set adapter: vera",
    "AdaLoraConfig": "set adapter: see ft plugins list --kind adapter",
    "PromptTuningConfig": "set adapter: see ft plugins list --kind adapter",
    "PrefixTuningConfig": "set adapter: see ft plugins list --kind adapter",
    "PeftModel.from_pretrained": "set adapter.resume_from",
    TRAINERS: "a recipe is one run, and the settings of all trainers were merged: split the script",
}
"""Calls, and attributes that are assigned, which change what trains; what to do about each."""
ANSWERS = ("GenerationConfig", "SamplingParams")
"""Configurations of answers, which no trainer is given here."""


def changes_of(tree: ast.AST, idle: set[ast.AST], trainers: Mapping[str, str]) -> dict[str, Any]:
    """Keys for what changes a script's model, tokenizer or adapter.

    Args:
        idle: nodes that never run.
        trainers: classes that train.
    """
    keys: dict[str, Any] = {}
    trained: list[str] = []
    for node in ast.walk(tree):
        if node in idle:
            continue
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and target.attr == "chat_template":
                    keys[target.attr] = ast.unparse(node.value)
        elif isinstance(node, ast.Call):
            called = called_of(node)
            whole = ast.unparse(node.func)
            name = whole if whole in CHANGES else called
            if called in trainers:
                trained.append(called)
            elif name in CHANGES:
                keys[name] = ", ".join(map(ast.unparse, [*node.args, *node.keywords]))
    if len(trained) > 1:
        keys[TRAINERS] = ", ".join(trained)
    return keys


def spread(node: ast.Call, names: Assigned) -> dict[str, Any]:
    """The keyword arguments of a call. What `**settings` holds counts where the script writes it out as a mapping; else
    a key says that it could not be read."""
    keys: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg:
            keys[keyword.arg] = value_of(keyword.value, names)
            continue
        held = value_of(keyword.value, names)
        keys |= held if isinstance(held, dict) else {f"**{ast.unparse(keyword.value)}": UNKNOWN}
    return keys


def loading(node: ast.Call, names: Assigned) -> dict[str, Any]:
    """What a call of `from_pretrained` says of the model apart from its name."""
    given = spread(node, names)
    keys = {key: given.pop(key) for key in [*given] if key.startswith(("load_in_", "bnb_", "**"))}
    given.pop("quantization_config", None)  # the BitsAndBytesConfig is read where it stands
    if "revision" in given:
        keys["model_revision"] = given.pop("revision")
    return keys | ({"model_init_kwargs": given} if given else {})
