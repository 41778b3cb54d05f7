"""What the scaffold of a family plugin is filled with, where there is a model to read it off."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import UserError
from finetooth_hooks.context import CommandContext, Context
from finetooth_hooks.entries import Family

KEYS: Mapping[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv", "n_kv_heads"),
    "head_dim": ("head_dim", "kv_channels", "attention_head_size"),
    "ffn_size": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff"),
    "vocab_size": ("vocab_size", "padded_vocab_size"),
    "max_positions": ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"),
}
"""By fact, the keys under which configs state it."""
DERIVED: Mapping[str, str] = {"kv_heads": "heads", "head_dim": "hidden // heads"}
"""What a fact follows from where a config does not state it."""
SHORT = 8
"""Tokens of a row, of which none is read: as many as every model takes."""
SEVERAL = "text_config"
"""The key under which the config of a model that also sees or hears has the part of its decoder."""


def family_values(context: CommandContext, model: str) -> dict[str, str]:
    """Python text by placeholder of the templates `family_of_model`.

    Args:
        model: a name, a folder or an id, as a recipe names it; its weights are not read.

    Raises:
        UserError: an installed family knows its type, or the model cannot be read.
    """
    changes = {"train": {"max_length": SHORT}, "data": {"renderer": "chatml"}}  # neither matters to the facts
    opened = context.open(model, changes).context
    kind = opened.model.model_type
    known = _family_of(context, kind)
    if known:
        raise UserError(
            f"{model} needs no plugin: the family {known} knows models of type {kind}",
            action=f"see ft plugins explain {known}",
        )
    return {"model_type": kind, **_names(opened), **_sizes(opened)}


def _family_of(context: CommandContext, kind: str) -> str:
    families = ((r.full_name, r.entry) for r in context.catalog.all("family"))
    return next((name for name, entry in families if isinstance(entry, Family) and kind in entry.model_types), "")


def _names(context: Context) -> dict[str, str]:
    """Module names and the head; every value is the text of a literal."""
    facts = context.facts
    head = f"Head({_literal(facts.head.module)}"
    head += f", scale={facts.head.scale!r}" * (facts.head.scale != 1.0)
    head += f", softcap={facts.head.softcap!r}" * (facts.head.softcap is not None) + ")"
    return {
        "attention": _literal(facts.attention_targets), "linear": _literal(facts.linear_targets),
        "untargeted": _literal(facts.untargeted), "towers": _literal(facts.towers),
        "layer_path": _literal(facts.layer_path), "body": _literal(facts.body), "head": head,
        "renderer": _literal(facts.renderer),
    }  # fmt: skip


def _sizes(context: Context) -> dict[str, str]:
    """Expressions that read the sizes from a config, and what they give for this one."""
    facts, config = context.facts, dict(context.model.config)
    several = isinstance(config.get(SEVERAL), Mapping)
    text = config[SEVERAL] if several else config
    values = {
        "text": f'text = config["{SEVERAL}"]' if several else "text = config",
        "tied": f'config.get("tie_word_embeddings", {facts.tied})',
    }
    own = {"tie_word_embeddings": config.get("tie_word_embeddings", facts.tied)}
    inside = {}
    for fact, keys in KEYS.items():
        size = getattr(facts, fact)
        key = next((key for key in keys if text.get(key) == size), None)
        usual = DERIVED.get(fact, str(size))
        if key is None:
            values[fact] = f'text.get("{keys[0]}") or {usual}'
        else:
            values[fact] = f'text["{key}"]' if fact not in DERIVED else f'text.get("{key}") or {usual}'
            inside[key] = size
    values["config"] = _literal({**own, SEVERAL: inside} if several else {**own, **inside}, indent=8)
    values["sizes"] = _literal(tuple(getattr(facts, fact) for fact in list(KEYS)[:6]))
    values["rest"] = _literal((facts.vocab_size, facts.max_positions, facts.tied))
    return values


def _literal(value: Any, indent: int = 0) -> str:
    text = pprint.pformat(value, width=110 - indent, compact=True, sort_dicts=False)
    return text.replace("'", '"').replace("\n", "\n" + " " * indent)
