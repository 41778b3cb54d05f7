"""Whether the engine gets a scalar head: the method's, or that of a model without training."""

from __future__ import annotations

from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.entries import Backend, Method
from finetooth_hooks.errors import PlanError
from finetooth_hooks.protocols import ModelFacts
from finetooth_recipes.recipe_picks import AUTO
from finetooth_toolbox.saved_heads import head_of

from finetooth_core.planning.context import RunContext

OUTPUTS = frozenset({"scores", "values"})
"""What a loss can read of a head."""


def decide_head(context: RunContext, backend: Backend, *, data: bool) -> ScalarHead | None:
    """The head of the recipe's method; without training data, and if the method has none, the model's own, so that a
    reward model can be used.

    Raises:
        PlanError: the backend builds no heads, or the model is a reward model and the method trains a language model.
    """
    pick = context.recipe.method
    name = pick if isinstance(pick, str) else str(pick.get("name", AUTO))
    entry = None if name == AUTO and not data else _method(context, name)  # without data nobody needs a method
    brought = head_of(context.model.config)
    head, reason = (None, "") if entry is None else (entry.head, f"method {entry.name} asks for it")
    trains_language = head is None or head.exported_as == "none"
    if trains_language and brought is not None:
        if data and entry is not None:
            raise PlanError(
                f"model: {context.recipe.model.name} is a reward model, and method {entry.name} trains a language "
                "model",
                action="name the model that it was made from",
            )
        head, reason = brought, "the model has it"
    if head is None:
        return None
    if "head" not in backend.capabilities:
        raise PlanError(
            f"a scalar head is needed, since {reason}, and backend {backend.name} cannot build one",
            action="pick another method or backend",
        )
    begins = "begins as the model's own" if brought is not None else "starts untrained"
    saved = (
        "is saved in a file of its own"
        if head.exported_as == "none"
        else f"is saved for a {head.exported_as} classifier"
    )
    context.decide("model.head", "scalar", f"{reason}; it {begins} and {saved}")
    return head


def _method(context: RunContext, name: str) -> Method:
    catalog = context.catalog
    entry = (
        catalog.default("method", setting="method") if name == AUTO else catalog.get("method", name, setting="method")
    ).entry
    assert isinstance(entry, Method)
    return entry


def check_head_is_there(setting: str, spec: LossSpec, head: ScalarHead | None) -> None:
    """Checks that the method asks for the scalar head that the loss reads.

    Raises:
        PlanError: a loss reads a head, and the method asks for none.
    """
    lacking = sorted(OUTPUTS & {need.split("@", 1)[0] for need in spec.needs})
    if lacking and head is None:
        raise PlanError(
            f"{setting}: loss {spec.name} reads {', '.join(lacking)} of a scalar head, and the method asks for none",
            action="choose another loss, or a method for reward models",
        )


def head_size(head: ScalarHead | None, facts: ModelFacts) -> int:
    """Its parameters."""
    return 0 if head is None else facts.hidden_size + head.bias
