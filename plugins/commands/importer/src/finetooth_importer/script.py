"""A Python script that trains: read by its syntax tree, and never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks import UserError

from finetooth_importer.account import COMPUTED
from finetooth_importer.expressions import UNKNOWN, Assigned, assigned, called_of, value_of
from finetooth_importer.script_changes import ANSWERS, changes_of, loading, spread
from finetooth_importer.script_rows import rows_of
from finetooth_importer.tools import trl, unsloth

_TRAINERS = {
    "SFTTrainer": "sft",
    "DPOTrainer": "dpo",
    "KTOTrainer": "kto",
    "ORPOTrainer": "orpo",
    "CPOTrainer": "cpo",
    "RewardTrainer": "reward",
    "PRMTrainer": "prm",
    "GRPOTrainer": "grpo",
    "RLOOTrainer": "rloo",
    "GKDTrainer": "gkd",
    "UnslothTrainer": "sft",
}
_CONFIG = re.compile(r"(Config|TrainingArguments|Arguments|LLMTrainingParams)$")


def of_script(text: str, path: Path) -> Mapping[str, Any]:
    """What a Python script gives to configurations and trainers, as far as it stands there as plain values. Nothing of
    it runs.

    Raises:
        UserError: the text is not Python, or has no configuration.
    """
    plain = "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in text.splitlines())
    try:
        tree = ast.parse(plain)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}", action="fix the line") from None
    names = assigned(tree)
    keys: dict[str, Any] = {}
    idle, own = _idle(tree), False
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = called_of(node)
        owner = node.func.value if isinstance(node.func, ast.Attribute) else None
        ours = isinstance(owner, ast.Name) and re.fullmatch(r"Fast\w*Model", owner.id)
        if ours and called in ("from_pretrained", "get_peft_model"):
            keys[unsloth.MARK] = True
            first = {"model_name": value_of(node.args[0], names)} if node.args and called == "from_pretrained" else {}
            keys.update(
                first
                | {k.arg: value_of(k.value, names) for k in node.keywords if k.arg not in (None, "model", "tokenizer")}
            )
        elif called in _SAVES and node not in idle:
            key, default = _SAVES[called]
            saved = next((value_of(k.value, names) for k in node.keywords if k.arg == key), default)
            both = [method if isinstance(method, list) else [method] for method in (keys.get(key, []), saved)]
            every = dict.fromkeys(method for some in both for method in some)
            keys[key] = (
                next(iter(every))
                if len(every) == 1
                else [str(COMPUTED if method is UNKNOWN else method) for method in every]
            )
        elif called == "train_on_responses_only":
            keys["train_on_responses_only"] = True
        elif called in _TRAINERS:
            keys[trl.METHOD] = _TRAINERS[called]
            keys.update(_of_trainer(node, names, tree))
        elif called in ANSWERS:
            continue
        elif _CONFIG.search(called) and not called.startswith("BitsAndBytes"):
            if called == "LoraConfig":
                keys[trl.PEFT] = called
            keys.update(spread(node, names))
            own = own or called.removesuffix("Config") + "Trainer" in _TRAINERS
            if called == trl.PLAIN:
                keys[trl.ARGUMENTS] = called
        elif called == "BitsAndBytesConfig":
            about = {k.arg: value_of(k.value, names) for k in node.keywords if k.arg}
            keys.update({key: value for key, value in about.items() if key.startswith(("load_in", "bnb_4bit"))})
            if about.get("load_in_4bit"):
                keys.setdefault("bnb_4bit_quant_type", "fp4")  # the default of that class
        elif (
            called == "from_pretrained"
            and node.args
            and "model" not in keys
            and isinstance(owner, ast.Name)
            and re.search(r"Model|CausalLM", owner.id)
        ):
            keys["model"] = value_of(node.args[0], names)
            keys.update(loading(node, names))
    keys.update(changes_of(tree, idle, _TRAINERS))
    if own:  # the trainer has a configuration of its own
        keys.pop(trl.ARGUMENTS, None)
    known = {key: value for key, value in keys.items() if value is not UNKNOWN}
    if not known:
        raise UserError(
            f"{path}: no configuration of a trainer", action="name a script with SFTConfig(...) or its like"
        )
    # what is computed stands in the account as its own text
    return {**known, **{key: COMPUTED for key, value in keys.items() if value is UNKNOWN}}


_SAVES = {
    "save_pretrained_merged": ("save_method", "merged_16bit"),
    "save_pretrained_gguf": ("quantization_method", "fast_quantized"),
}
"""Calls of Unsloth that write a model: the argument that says how, and its default."""


def _idle(tree: ast.AST) -> set[ast.AST]:
    """What stands below `if False:`, as notebooks show what could be done."""
    never = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Constant) and not node.test.value
    ]  # fmt: skip
    return {inside for node in never for statement in node.body for inside in ast.walk(statement)}


def _of_trainer(node: ast.Call, names: Assigned, tree: ast.AST) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
    for name in ("max_seq_length", "dataset_text_field", "packing", "dataset_num_proc", "beta", "max_length"):
        if name in keywords:
            keys[name] = value_of(keywords[name], names)
    for name in ("formatting_func", "compute_metrics", "callbacks", "data_collator", "rollout_func"):
        if name in keywords:
            keys[name] = ast.unparse(keywords[name])
    if "reward_funcs" in keywords:
        judges = keywords["reward_funcs"]
        listed = judges.elts if isinstance(judges, ast.List | ast.Tuple) else [judges]
        modules = {
            alias.asname or alias.name: f"{place.module}.{alias.name}"
            for place in ast.walk(tree) if isinstance(place, ast.ImportFrom) and place.module
            for alias in place.names
        }  # fmt: skip
        keys["reward_funcs"] = [modules.get(text, text) for text in map(ast.unparse, listed)]
    for name in ("model", "teacher_model"):
        if name in keywords and isinstance(model := value_of(keywords[name], names), str):
            keys[name] = model
    return {**keys, **rows_of(keywords, names, tree)}
