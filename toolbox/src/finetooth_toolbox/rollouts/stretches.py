"""Answers that are written a stretch at a time, each stretch by the weights of its moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks.context import Context
from finetooth_hooks.rollouts import Prompt, Rollout


def unfinished(rollout: Rollout, written: int) -> bool:
    """Whether an answer goes on: it was cut off where its stretches ended, and not sooner.

    Args:
        written: tokens that it could have by now.
    """
    return rollout.outcome == "length" and len(rollout.tokens) == written


def asked_on(rollout: Rollout) -> Prompt:
    """The prompt of what follows: all that stands there is read anew, by the weights that write on."""
    return Prompt(rollout.id, rollout.group, (*rollout.prompt, *rollout.tokens))


def joined(context: Context, begun: Rollout, further: Rollout) -> Rollout:
    """An answer and what follows it, as one: every token keeps its log-probability and its version.

    Args:
        further: the answer to `asked_on(begun)`.
    """
    tokens = (*begun.tokens, *further.tokens)
    ended = further.outcome == "stop" and tokens[-1] in context.renderer.stop_ids
    return replace(
        begun,
        tokens=tokens,
        logprobs=(*begun.logprobs, *further.logprobs),
        versions=(*begun.versions, *further.versions),
        text=context.tokenizer.decode(list(tokens[:-1] if ended else tokens)),
        outcome=further.outcome,
        kept=(*_kept(begun), *_kept(further)) if begun.kept or further.kept else (),
    )


def _kept(rollout: Rollout) -> Sequence[tuple[int, ...]]:
    return rollout.kept or [()] * len(rollout.tokens)
