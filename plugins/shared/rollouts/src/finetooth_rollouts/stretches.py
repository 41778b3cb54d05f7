"""Answers that are written a stretch at a time, each stretch by the weights of its moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from finetooth_hooks.context import Context
from finetooth_hooks.errors import EngineError
from finetooth_hooks.rollouts import Prompt, Rollout


def unfinished(rollout: Rollout, written: int) -> bool:
    """Whether an answer is unfinished: it was cut off where its stretches ended, and not sooner.

    Args:
        written: tokens that it could have by now.
    """
    return rollout.outcome == "length" and len(rollout.tokens) == written


def continued_prompt(rollout: Rollout) -> Prompt:
    """The prompt of what follows: all that stands there is read again, by the weights that write on."""
    return Prompt(rollout.id, rollout.group, (*rollout.prompt, *rollout.tokens))


def joined(
    context: Context, begun: Rollout, further: Rollout, *, stop: Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
) -> Rollout:  # fmt: skip
    """An answer and what follows it, as one: every token keeps its log-probability and its version.

    Args:
        further: the answer to `continued_prompt(begun)`.
        stop: strings that end it. One that begins in the first and ends in the second was seen by neither: it ends the
            answer here, and what was written behind it goes.
        stop_ids: token ids that end it; None: the family's.

    Raises:
        EngineError: somebody else wrote a part of it.
    """
    if begun.own or further.own:
        raise EngineError(
            "method.partial_rollouts: the sampler's answers hold tokens that the policy did not write, so none can be "
            "continued",
            action="leave method.partial_rollouts out",
        )
    tokens = (*begun.tokens, *further.tokens)
    ended = further.outcome == "stop" and tokens[-1] in (context.renderer.stop_ids if stop_ids is None else stop_ids)
    text, outcome = context.tokenizer.decode(list(tokens[:-1] if ended else tokens)), further.outcome
    at = min((place for ending in stop if (place := text.find(ending)) >= 0), default=None)
    if at is not None:
        decode = context.tokenizer.decode
        counts = range(len(begun.tokens) + 1, len(tokens))
        whole = next((n for n in counts if any(ending in decode(list(tokens[:n])) for ending in stop)), len(tokens))
        tokens, text, outcome = tokens[:whole], text[:at], "stop"
    count = len(tokens)
    return replace(
        begun,
        tokens=tokens,
        logprobs=(*begun.logprobs, *further.logprobs)[:count],
        versions=(*begun.versions, *further.versions)[:count],
        text=text,
        outcome=outcome,
        kept=(*_allowed_tokens(begun), *_allowed_tokens(further))[:count] if begun.kept or further.kept else (),
    )


def _allowed_tokens(rollout: Rollout) -> Sequence[tuple[int, ...]]:
    return rollout.kept or [()] * len(rollout.tokens)
