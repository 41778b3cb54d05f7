"""Finds, describes and checks the models that a method needs besides the policy; all must have the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.engine import RoleModel
from finetooth_hooks.entries import Adapter, Backend
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.protocols import Adapter as BuiltAdapter
from finetooth_hooks.protocols import Method, RoleRequest, Tokenizer

from finetooth_core.planning.context import RunContext

PROBE = "Two  words, 3.14159 km/h:\n\tif x != y:\n        return 'ñ — 日本語 👩‍🚀' + \"ok\"  # done"
"""A text that tokenizers of one vocabulary still cut differently."""


def no_reference(backend: Backend, entry: Adapter, adapter: BuiltAdapter) -> str:
    """Why the policy without its adapter cannot be the reference; empty if it can."""
    if "reference" not in backend.capabilities:
        return f"backend {backend.name} evaluates no reference"
    if not entry.can_disable:
        return f"adapter {entry.name} cannot be switched off"
    if "begins_apart" in adapter.capabilities:
        return (
            f"adapter {entry.name} with these options does not begin as its base, so the policy without it is not "
            "the model that the run began with"
        )
    return ""


def brought_roles(method: Method, *, spared: bool) -> dict[str, RoleModel | None]:
    """The roles that a method brings.

    Args:
        spared: the policy without its adapter can be the reference.
    """
    return {
        role: model
        for role, model in method.roles.items()
        if not (role == "reference" and spared and model is not None and model.only_if_needed)
    }


def held_roles(
    context: RunContext, losses: Sequence[LossSpec], brought: Mapping[str, RoleModel | None], backend: Backend
) -> dict[str, RoleRequest]:
    """The engine's models besides the policy; the plan says how each role of a loss is computed.

    Raises:
        PlanError: the backend supports only the policy.
        RecipeError: a model is missing, or has another tokenizer than the policy.
    """
    for role in sorted({role for spec in losses for role in spec.roles}):
        if role not in brought:
            context.decide(f"method.{role}.policy", "adapter-off", "the policy without its adapter; no second model")
        elif brought[role] is None:
            context.decide(f"method.{role}.policy", "precomputed", "computed once before training, and saved")
    models = {role: model for role, model in brought.items() if model is not None}
    if models and "roles" not in backend.capabilities:
        raise PlanError(
            f"method: it needs the role {min(models)!r}, and backend {backend.name} holds no model but the policy",
            action="pick another reference, or another backend",
        )
    return {role: _request(context, role, model.reference) for role, model in models.items()}


def _request(context: RunContext, role: str, reference: str) -> RoleRequest:
    setting = f"method.{role}.policy"
    if not reference:
        context.decide(setting, "frozen-copy", "a copy of the weights that train, made before the first step")
        return RoleRequest()
    recipe = context.recipe.model_copy(update={"model": context.recipe.model.model_copy(update={"name": reference})})
    theirs = context.beside(recipe)
    try:
        difference = tokenizer_difference(context.tokenizer, theirs.tokenizer)
    except RecipeError as error:
        raise RecipeError(setting, error.problem, action=error.action) from error
    if difference:
        raise RecipeError(
            setting,
            f"{reference!r} has another tokenizer than {context.recipe.model.name!r}: {difference}",
            action=f"choose a {role} that reads the same tokens",
        )
    context.decide(setting, reference, f"{theirs.model.parameters / 1e6:,.0f} M parameters, the same tokenizer")
    return RoleRequest(theirs.model, theirs.facts, theirs.loader)


def tokenizer_difference(mine: Tokenizer, theirs: Tokenizer) -> str:
    """The difference of two tokenizers; empty if they agree on every id and on a probe text."""
    if mine.vocab_size != theirs.vocab_size:
        return f"it has {theirs.vocab_size} tokens, not {mine.vocab_size}"
    for id_ in range(mine.vocab_size):
        here, there = mine.decode([id_]), theirs.decode([id_])
        if here != there:
            return f"id {id_} is {there!r}, not {here!r}"
    return "" if mine.encode(PROBE) == theirs.encode(PROBE) else "it cuts texts into other tokens"
