"""What an engine of the torch backend can do at most; `reference`, `head` and `adapters` depend on the run. It has
`weights` if the optimizer and the adapter keep no weights besides the trained ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetooth_hooks.protocols import EngineRequest

CAPABILITIES = frozenset(
    {
        "handles",
        "gradients",
        "zero_grad",
        "generate",
        "continuous",
        "adapters",
        "full_state",
        "snapshots",
        "interrupt",
        "reference",
        "head",
        "depths",
        "trees",
        "usage",
        "profile",
        "roles",
        "step_settings",
        "module",
        "ranks",
        "own_prompts",
        "own_requests",
        "release",
        "shared_base",
        "temperature",
        "optimizers",
        "embedding_noise",
        "schema",
        "min_p",
        "repetition_penalty",
        "additions",
        "weights",
    }
)


def capabilities(request: EngineRequest, *, head: bool) -> frozenset[str]:
    """The capabilities of a request's engine.

    Args:
        head: it has a scalar head.
    """
    trains = request.trains
    lacking = set[str]() if trains.can_disable or "reference" in request.roles else {"reference"}
    alone = not trains.base_frozen or request.base.facts.new_tokens  # all rows of a batch have the same embedding
    if alone or "additions" not in trains.adapter.capabilities:
        lacking.add("adapters")
    kept_twice = {"averages", "masterless"} & set(request.updates.optimizer.capabilities)
    if kept_twice or "changes" in trains.adapter.capabilities:
        lacking.add("weights")
    sharding = request.place.sharding
    if sharding is not None and sharding.stages is not None:  # each rank has only some layers
        lacking |= {"continuous", "adapters", "depths", "weights"}
    if sharding is not None and sharding.positions > 1:  # attention of divided rows takes no mask of pairs
        lacking.add("trees")
    if sharding is not None and sharding.weights > 1:  # ranks gather the weights together when a batch begins
        lacking.add("own_requests")
    if sharding is not None and sharding.divided:  # DeepSpeed gathers layers in an order that is the same at all ranks
        lacking.add("own_prompts")
    if sharding is not None and sharding.sampled_by_layer:  # in a separate call, which ranks make together
        lacking |= {"continuous", "adapters", "own_prompts"}
    return CAPABILITIES - lacking - (set() if head else {"head"})
