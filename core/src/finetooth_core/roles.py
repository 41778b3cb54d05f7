"""Models that a method needs beside the policy: found, described, and made sure that they read the same tokens."""

from __future__ import annotations

from collections.abc import Mapping

from finetooth_hooks.engine import RoleModel
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import RoleRequest, Tokenizer

from finetooth_core.context import RunContext

PROBE = "Two  words, 3.14159 km/h:\n\tif x != y:\n        return 'ñ — 日本語 👩‍🚀' + \"ok\"  # done"
"""A text that tokenizers of one vocabulary still cut differently."""


def role_requests(context: RunContext, roles: Mapping[str, RoleModel]) -> dict[str, RoleRequest]:
    """What the engine gets for each role.

    Raises:
        RecipeError: a model is not there, or has another tokenizer than the policy.
    """
    return {role: _request(context, role, model.reference) for role, model in roles.items()}


def _request(context: RunContext, role: str, reference: str) -> RoleRequest:
    setting = f"method.{role}.policy"
    if not reference:
        context.decide(setting, "frozen-copy", "a copy of what trains, as it is before the first step")
        return RoleRequest()
    recipe = context.recipe.model_copy(update={"model": context.recipe.model.model_copy(update={"name": reference})})
    theirs = RunContext(recipe, context.catalog, context.folder, context.plugins)
    try:
        difference = tokenizer_difference(context.tokenizer, theirs.tokenizer)
    except RecipeError as error:
        raise RecipeError(setting, error.problem, action=error.action) from error
    if difference:
        raise RecipeError(
            setting,
            f"{reference!r} has another tokenizer than {context.recipe.model.name!r}: {difference}",
            action="choose a reference that reads the same tokens",
        )
    context.decide(setting, reference, f"{theirs.model.parameters / 1e6:,.0f} M parameters, the same tokenizer")
    return RoleRequest(theirs.model, theirs.facts, theirs.loader)


def tokenizer_difference(mine: Tokenizer, theirs: Tokenizer) -> str:
    """Where two tokenizers differ, empty if they say the same of every id and of a probe text."""
    if mine.vocab_size != theirs.vocab_size:
        return f"it has {theirs.vocab_size} tokens, not {mine.vocab_size}"
    for id_ in range(mine.vocab_size):
        here, there = mine.decode([id_]), theirs.decode([id_])
        if here != there:
            return f"id {id_} is {there!r}, not {here!r}"
    return "" if mine.encode(PROBE) == theirs.encode(PROBE) else "it cuts texts into other tokens"
