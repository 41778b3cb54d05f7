"""Turns rollouts into data: sampled tokens with a weight and an advantage each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from finetooth_hooks.data.datum import Datum, TokenChunk
from finetooth_hooks.errors import DataError
from finetooth_hooks.rollouts import Rollout
from numpy.typing import NDArray

from finetooth_rollouts.kept import renormalised


def data_of(rollouts: Sequence[Rollout], weights: Sequence[float]) -> list[Datum]:
    """A datum for each rollout, masked but for the tokens that the policy wrote: fields `advantages` and
    `token_weights`, and those of the rollout, (N,).

    Where tokens were drawn among some that sampling kept, targets are (N, K), the drawn token first, and the field
    `kept` (N, K) marks those that are not padding, as `renormalised` reads it.

    Args:
        weights: of a token, for each rollout.
    """
    most = most_kept(rollouts)
    return [_datum(rollout, weight, most) for rollout, weight in zip(rollouts, weights, strict=True)]


def _datum(rollout: Rollout, weight: float, most: int) -> Datum:
    tokens = np.array([*rollout.prompt, *rollout.tokens], dtype=np.int64)
    before, count = len(rollout.prompt) - 1, len(rollout.tokens)
    own = np.array(rollout.own, dtype=np.bool_) if rollout.own else np.ones(count, dtype=np.bool_)
    mask = np.concatenate([np.zeros(before, dtype=np.bool_), own])
    advantages = rollout.advantages or (0.0,) * count
    fields = {
        "advantages": np.concatenate([np.zeros(before), np.array(advantages)]),
        "token_weights": np.where(mask, weight, 0.0),
        **{name: np.concatenate([np.zeros(before), np.array(of)]) for name, of in rollout.fields.items()},
    }
    targets, kept = among_kept(tokens[1:], [(before, rollout)], most)
    return Datum(
        (TokenChunk(tokens[:-1]),), targets, mask=mask, fields={**fields, **kept}, group=rollout.group, id=rollout.id
    )


def most_kept(rollouts: Iterable[Rollout]) -> int:
    """K of `among_kept`; 0 where nothing was left out."""
    sets = (ids for rollout in rollouts for ids in rollout.kept if ids)
    return max((len(ids) + (ids[0] < 0) for ids in sets), default=0)


def among_kept(
    targets: NDArray[Any], drawn: Sequence[tuple[int, Rollout]], most: int
) -> tuple[NDArray[Any], dict[str, NDArray[np.float64]]]:
    """Targets (N, K), the given one first, and the field `kept` (N, K); where `most` is 0, (N,) and no field.

    Args:
        targets: (N,).
        drawn: rollouts, each with the place of the target that is its first token.
        most: K, of `most_kept`.
    """
    if not most:
        return targets, {}
    wide, real = np.repeat(targets[:, None], most, axis=1), np.zeros((len(targets), most))
    for first, rollout in drawn:
        pairs = zip(rollout.tokens, rollout.kept or [()] * len(rollout.tokens), strict=True)
        for row, (token, ids) in enumerate(pairs, first):
            others, lacking = np.array(ids, dtype=np.int64), not ids or ids[0] < 0
            others = -1 - others if lacking else others[others != token]
            wide[row, 1 : 1 + len(others)] = others
            real[row, 0], real[row, 1 : 1 + len(others)] = (2.0, -1.0) if lacking else (1.0, 1.0)
    return wide, {"kept": real}


def learned(rollout: Rollout, weight: float = 1.0) -> Datum:
    """The answer behind its prompt, as a row of `sft` would be: the field `weights` is `weight` for every token that
    the policy wrote."""
    each = [*(0.0 for _ in rollout.prompt), *for_every(rollout, (weight for _ in range(rollout.length)))]
    return Datum.from_tokens([*rollout.prompt, *rollout.tokens], each, group=rollout.group, id=rollout.id)


def data_of_pair(id: str, prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Iterator[Datum]:
    """The two answers behind their prompt, the chosen one first; likelihood counts in that one alone."""
    for answer, label in ((chosen, 1.0), (rejected, 0.0)):
        each = [0.0] * len(prompt) + [1.0] * len(answer)
        datum = Datum.from_tokens([*prompt, *answer], each, scalars={"label": label}, group=id, id=id)
        yield replace(datum, mask=datum.mask, fields={"weights": datum.fields["weights"] * label})


def prompt_and_answer(datum: Datum) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before the last stretch of tokens that trains in a row of `sft`, and that stretch.

    Raises:
        DataError: nothing stands before it, or the row holds more than tokens.
    """
    if datum.media:
        raise DataError(
            datum.id, "the row holds more than text, which cannot be asked again", action="take it out of the rows"
        )
    trains = np.flatnonzero(datum.mask)
    first, last = int(trains[np.append(True, np.diff(trains) > 1)][-1]), int(trains[-1])
    tokens = [*map(int, datum.tokens), int(datum.targets[-1])]
    if first == 0:
        raise DataError(
            datum.id,
            "all of the row trains, so nothing asks for an answer",
            action="give rows with a prompt and an answer, or conversations",
        )
    return tuple(tokens[: first + 1]), tuple(tokens[first + 1 : last + 2])


def with_old(data: Sequence[Datum], old: Sequence[NDArray[np.float32]]) -> list[Datum]:
    """The data with the log-probabilities of the weights that sampled them, in the shape of their targets."""
    pairs = zip(data, old, strict=True)
    return [replace(datum, fields={**datum.fields, "old_logprobs": of}) for datum, of in pairs]


def sampled_logprobs(datum: Datum, logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-probabilities of the tokens that the policy wrote, among those that sampling kept.

    Args:
        logprobs: (N,) or (N, K), as an engine gives them for the datum.
    """
    real = datum.fields.get("kept")
    drawn = renormalised(logprobs[datum.mask], None if real is None else real[datum.mask])
    return np.asarray(drawn, dtype=np.float32)


def for_every(rollout: Rollout, values: Iterable[float]) -> tuple[float, ...]:
    """(T,) of all tokens from numbers of those that the policy wrote; 0 for the others."""
    numbers = iter(values)
    return tuple(float(next(numbers)) if own else 0.0 for own in rollout.own or (True,) * len(rollout.tokens))


def with_logprobs(rollout: Rollout, logprobs: Sequence[float]) -> Rollout:
    """The rollout with other log-probabilities of the tokens that the policy wrote."""
    return replace(rollout, logprobs=for_every(rollout, logprobs))
