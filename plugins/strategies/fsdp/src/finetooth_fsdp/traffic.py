"""What ranks send, before a run."""

from __future__ import annotations

from finetooth_hooks.protocols import Foreseen, Traffic
from finetooth_torchshared.collective import traffic_of_positions

from finetooth_fsdp.options import FsdpOptions


def traffic(options: FsdpOptions, parameters: int, world: int, run: Foreseen) -> Traffic:
    """What a rank gives to those that it shares weights with, to the other replicas, and to those that compute the same
    rows.

    In every pass a rank gives its part of the weights, once more for the backward pass where layers are not kept, and
    parts of the sums of gradients in fp32. Each layer is a call of its own, and what lies in none is one. Replicas sum
    these parts in every pass.

    Args:
        parameters: numbers that train.
        world: ranks.
    """
    tensor, copies, parts, calls = options.tensor, options.copies(world), options.parts(world), run.layers + 1
    outside = run.trained_outside(parameters)
    weights = run.outside + (run.weights - run.outside) // tensor
    gradients = 4 * (outside + (parameters - outside) // tensor)
    again = run.outside if options.keep_layers else weights
    sums = Traffic(
        every=1, sent=run.passes * gradients // parts, peers=copies, calls=run.passes * calls,
        what="gradients between replicas", span=world,
    )  # fmt: skip
    also = [sums] if copies > 1 else []
    if tensor > 1:
        also.append(_of_tensor(options, run, embeddings_train=outside > 0))
    if options.context > 1:
        span, gloo = options.context * tensor, options.transport == "gloo"
        also += traffic_of_positions(run, options.context, span=span, heads=tensor, gloo=gloo)
    return Traffic(
        every=1, sent=run.passes * (weights + again + gradients) // parts, peers=parts, summed=False,
        calls=run.passes * 3 * calls, what="weights and gradients", span=parts * tensor, also=tuple(also),
    )  # fmt: skip


def _of_tensor(options: FsdpOptions, run: Foreseen, *, embeddings_train: bool) -> Traffic:
    """Hidden states: summed behind attention and behind the feed-forward block, and their gradients before either, but
    before attention of the first layer where no embeddings train. A backward pass that computes a layer again sums
    behind attention alone, since torch stops where nothing more is needed. The sums of low-rank additions are left
    out."""
    sums = run.passes * (run.layers * (4 + run.recomputes) - (0 if embeddings_train else 1))
    states = run.positions // options.context * run.hidden * run.size
    return Traffic(every=1, sent=sums * states, peers=options.tensor, calls=sums, what="hidden states")
