"""Chooses tokens from logits; every row has its own random stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from finetooth_hooks import Sampling
from finetooth_kernels.contract import ids_checked
from finetooth_kernels.memory import placed
from finetooth_modelfiles.schemas import drawn_among
from torch import Tensor

from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.device import graphs
from finetooth_torch.precision import has_float64

BLOCK = 256
"""Tokens per block of the cumulative distribution: two short searches instead of one running sum over the
vocabulary."""

LIKELIEST = 512
"""Tokens that `top_p` reads first; if their probability is too small, it reads all."""


@dataclass(frozen=True)
class Chosen:
    """The next token of each row.

    Attributes:
        tokens: (B,) int64.
        logprobs: (B,), untempered.
        drawn: (B,) float64, log-probability under the sampling distribution; None if not requested.
        kept: the candidates of each row, as `Completion.kept`; empty if all tokens were, or not requested.
    """

    tokens: Tensor
    logprobs: Tensor
    drawn: Tensor | None = None
    kept: tuple[tuple[int, ...], ...] = ()


def choose(
    logits: Tensor,
    sampling: Sampling,
    streams: Sequence[np.random.Generator],
    compute: Compute = TORCH,
    *,
    source: Tensor | None = None,
    among: Tensor | None = None,
    numbers: Sequence[float] | None = None,
) -> Chosen:
    """The next token of each row.

    Temperature applies first, then `top_k`, then `top_p` (Holtzman et al., 2020, arXiv:1904.09751), then `min_p`, a
    share of the likeliest token's probability (Nguyen et al., 2024, arXiv:2407.01082). Of equally likely tokens the
    lower id counts as more likely. One uniform number per row picks the token by the inverse of the cumulative
    distribution, so it depends only on the row's logits and stream.

    Args:
        logits: (B, V) of the unscaled model.
        streams: one per row; each advances by one number unless sampling is greedy.
        compute: computes the log-probabilities.
        source: (B, V) logits to sample from, after penalties and biases; None: `logits`.
        among: (B, V) the same with -inf for forbidden tokens; None: all are allowed. Log-probabilities are always of
            `logits`.
        numbers: the uniform numbers, if they are known; else the streams give them.
    """
    if not has_float64(logits.device):  # of cumulative sums
        source, among = (None if of is None else of.cpu() for of in (source, among))
        logits = logits.cpu()
    numbers = uniform_numbers(sampling, streams) if numbers is None else numbers
    with ids_checked():  # they come from the logits' own columns
        return _choose(logits, sampling, numbers, compute, source, among)


def uniform_numbers(sampling: Sampling, streams: Sequence[np.random.Generator]) -> list[float]:
    """A number of each row's stream; none if sampling is greedy."""
    return [] if sampling.temperature == 0 else [stream.random() for stream in streams]


def choose_in_place(
    logits: Tensor, sampling: Sampling, draws: Tensor, compute: Compute = TORCH, *, source: Tensor | None = None
) -> Tensor:
    """`choose` without a look at the numbers, for a graph: every shape follows from the arguments.

    Args:
        draws: (B,) float64, the uniform numbers.
        source: see `choose`; with -inf for forbidden tokens.

    Returns:
        (B, C) float64, for `read_choice`: token, log-probability, whether all candidates had a place; with
        `sampling.drawn` the log-probability under the sampling distribution, and the candidates' weights and ids.
    """
    drawn_from = logits if source is None else source
    with ids_checked():
        tokens = None if source is None or sampling.temperature else source.argmax(-1)
        left: Left | None = None
        if sampling.temperature:
            width = _width(logits, sampling)
            tokens, left = _drawn(drawn_from, sampling, draws, lambda least: _first_at_least(drawn_from, least, width))
        fit = torch.ones_like(draws) if left is None or left[2] is None else left[2].double()
        statistics = compute.logits_statistics(logits, tokens)
        columns = [statistics.ids.double(), statistics.logprobs.double(), fit]
        if not sampling.drawn:
            return torch.stack(columns, -1)
        columns.append(_drawn_logprobs(drawn_from, sampling, tokens if sampling.temperature else None, left))
        candidates = () if left is None else (left[0], left[1].double())
        return torch.cat([torch.stack(columns, -1), *candidates], -1)


def read_choice(choice: Tensor, sampling: Sampling) -> Chosen | None:
    """The result of `choose_in_place`, on the host; None if a row had more candidates than places."""
    if not choice[:, 2].all():
        return None
    tokens, logprobs = choice[:, 0].long(), choice[:, 1]
    if not sampling.drawn:
        return Chosen(tokens, logprobs)
    weights, ids = choice[:, 4:].chunk(2, -1)
    kept = _candidates(weights, ids.long()) if ids.numel() else ()
    if not sampling.temperature:
        kept = tuple((token,) for token in tokens.tolist())
    return Chosen(tokens, logprobs, choice[:, 3], kept)


@dataclass(frozen=True)
class Asked:
    """Rows with the same settings; the arguments of `choose`."""

    logits: Tensor
    sampling: Sampling
    streams: Sequence[np.random.Generator]
    source: Tensor | None = None
    among: Tensor | None = None

    @property
    def lists(self) -> tuple[Tensor, ...]:
        """What decides on `Chosen.kept` if that is what a schema allows: see `_among`."""
        of = self.sampling
        whole = not (0 < of.top_k < self.logits.shape[-1] or of.top_p < 1 or of.min_p)
        if self.among is None or not (of.drawn and of.temperature and whole):
            return ()
        return self.among > -torch.inf, (self.logits if self.source is None else self.source).double()


def choose_together(asked: Sequence[Asked], compute: Compute = TORCH) -> list[Chosen]:
    """`choose` for rows of several settings. A device that has graphs is waited for once, for all of them."""
    if not graphs.replays(asked[0].logits.device):
        return [choose(of.logits, of.sampling, of.streams, compute, source=of.source, among=of.among) for of in asked]
    numbers = [uniform_numbers(of.sampling, of.streams) for of in asked]
    choices, listed = list[Tensor](), list[tuple[Tensor, ...]]()
    for of, own in zip(asked, numbers, strict=True):
        draws = placed(torch.tensor(own or [0.0] * len(of.streams), dtype=torch.float64), of.logits.device)
        source = of.source if of.among is None else of.among
        choices.append(choose_in_place(of.logits, of.sampling, draws, compute, source=source))
        listed.append(tuple(x.to("cpu", non_blocking=True) for x in of.lists))  # there as soon as the next copy is
    read = torch.cat([choice.flatten() for choice in choices]).cpu()
    parts = torch.split(read, [choice.numel() for choice in choices])
    chosen = []
    for of, own, choice, lists, values in zip(asked, numbers, choices, listed, parts, strict=True):
        found = read_choice(values.view(choice.shape), of.sampling)
        if found is None:
            found = choose(of.logits, of.sampling, (), compute, source=of.source, among=of.among, numbers=own)
        chosen.append(replace(found, kept=_among(lists[0], lists[1], of.sampling.temperature)) if lists else found)
    return chosen


def _choose(
    logits: Tensor,
    sampling: Sampling,
    numbers: Sequence[float],
    compute: Compute,
    source: Tensor | None,
    among: Tensor | None,
) -> Chosen:
    whole = logits if source is None else source
    drawn_from = whole if among is None else among
    if sampling.temperature == 0:
        statistics = compute.logits_statistics(logits, None if drawn_from is logits else drawn_from.argmax(-1))
        sure = _drawn_logprobs(logits, sampling, None, None) if sampling.drawn else None
        candidates = tuple((token,) for token in statistics.ids.tolist()) if sampling.drawn else ()
        return Chosen(statistics.ids, statistics.logprobs, sure, candidates)
    draws = placed(torch.tensor(numbers, dtype=torch.float64), logits.device)
    width = _width(logits, sampling) if graphs.replays(logits.device) else 0
    tokens, left = _drawn(drawn_from, sampling, draws, lambda least: _at_least(drawn_from, least, width))
    statistics = compute.logits_statistics(logits, tokens)
    if not sampling.drawn:
        return Chosen(statistics.ids, statistics.logprobs)
    mine = _drawn_logprobs(drawn_from, sampling, tokens, left)
    if left is not None:
        return Chosen(statistics.ids, statistics.logprobs, mine, _candidates(*left[:2]))
    kept = () if among is None else _among((among > -torch.inf).cpu(), whole.double().cpu(), sampling.temperature)
    return Chosen(statistics.ids, statistics.logprobs, mine, kept)


Left = tuple[Tensor, Tensor, Tensor | None]
"""Candidates of rows: weights, 0 for none, and ids, both (B, C); (B,) whether there are no more, None if so."""


def _drawn_logprobs(logits: Tensor, sampling: Sampling, tokens: Tensor | None, left: Left | None) -> Tensor:
    """(B,) float64: the tokens' log-probabilities under the sampling distribution; without tokens it is greedy."""
    if tokens is None:
        return torch.zeros(logits.shape[0], dtype=torch.float64, device=logits.device)
    if left is None:
        tempered = torch.log_softmax(logits.double() / sampling.temperature, -1)
        return tempered.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    weights, ids, _ = left
    mine = torch.where(ids == tokens.unsqueeze(-1), weights, 0.0).sum(-1)
    return (mine / weights.sum(-1)).log()


def _candidates(weights: Tensor, ids: Tensor) -> tuple[tuple[int, ...], ...]:
    """The ids with a weight, for each row, ascending."""
    return tuple(tuple(sorted(row[of > 0].tolist())) for row, of in zip(ids.cpu(), weights.cpu(), strict=True))


def _among(allowed: Tensor, logits: Tensor, temperature: float) -> tuple[tuple[int, ...], ...]:
    """For each row of logits (B, V), the tokens that its schema allows; both on the host."""
    return tuple(drawn_among(*of, temperature) for of in zip(allowed.numpy(), logits.numpy(), strict=True))


def _width(logits: Tensor, sampling: Sampling) -> int:
    """Places for candidates of a row, if there are not more."""
    return min(logits.shape[-1], max(LIKELIEST, sampling.top_k))


def _drawn(
    logits: Tensor, sampling: Sampling, draws: Tensor, gathered: Callable[[Tensor], Left]
) -> tuple[Tensor, Left | None]:
    """(B,) the tokens, and their candidates if some are left out.

    Args:
        gathered: from thresholds (B, 1) to logits of at least that, instead of weights.
    """
    vocabulary = logits.shape[-1]
    top_k = sampling.top_k if 0 < sampling.top_k < vocabulary else 0
    if not top_k and sampling.top_p >= 1 and not sampling.min_p:
        return _invert_blocks(_weights(logits, sampling.temperature), draws), None
    if top_k:
        least = logits.topk(top_k).values[:, -1:]
    elif sampling.top_p < 1:
        least = _least_of_nucleus(logits, sampling)
    else:
        enough = _weights(logits, sampling.temperature) >= sampling.min_p
        least = torch.where(enough, logits, torch.inf).amin(-1, keepdim=True)
    values, ids, fit = gathered(least)
    weights = _weights(values, sampling.temperature).double()
    if top_k:
        weights[:, top_k:].zero_()
    if sampling.top_p < 1:
        whole = weights if top_k else _weights(logits, sampling.temperature)
        total = whole.sum(-1, keepdim=True).double()
        before = weights.cumsum(-1) - weights  # the most likely token always stays
        weights = torch.where(before < sampling.top_p * total, weights, 0.0)
    if sampling.min_p:
        weights = torch.where(weights >= sampling.min_p, weights, 0.0)
    return ids.gather(-1, _invert(weights, draws).unsqueeze(-1)).squeeze(-1), (weights, ids, fit)


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities up to a factor per row; the most likely token's is 1."""
    return (logits - logits.amax(-1, keepdim=True)).div_(temperature).exp_()


def _least_of_nucleus(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, 1): a threshold; the tokens with at least this logit reach `top_p`."""
    likeliest = logits.topk(min(LIKELIEST, logits.shape[-1])).values
    reached = _weights(likeliest, sampling.temperature).double().sum(-1, keepdim=True)
    total = _weights(logits, sampling.temperature).sum(-1, keepdim=True).double()
    enough = reached > sampling.top_p * total * (1 + 1e-5)  # float32 sums: in doubt, read all
    return torch.where(enough, likeliest[:, -1:], -torch.inf)


def _at_least(logits: Tensor, least: Tensor, width: int) -> Left:
    """Logits of at least `least` (B, 1), highest first, and their ids: both (B, C), filled up with -inf; C is at least
    `width`."""
    rows, ids = (logits >= least).nonzero(as_tuple=True)  # ascending ids, which the stable sort keeps
    counts = (logits >= least).sum(-1)  # bincount waits for the device
    columns = torch.arange(len(rows), device=logits.device) - (counts.cumsum(0) - counts)[rows]
    shape = logits.shape[0], max(width, int(counts.max()))
    values, places = logits.new_full(shape, -torch.inf), ids.new_zeros(shape)
    values[rows, columns], places[rows, columns] = logits[rows, ids], ids
    return *_descending(values, places), None


def _first_at_least(logits: Tensor, least: Tensor, width: int) -> Left:
    """`_at_least` for the `width` lowest ids, (B, width): which they are is not asked on the host."""
    counts = (logits >= least).cumsum(-1)
    numbers = torch.arange(1, width + 1, device=logits.device).expand(logits.shape[0], -1).contiguous()
    ids = torch.searchsorted(counts, numbers)  # the first place where so many are counted
    missing = ids >= logits.shape[-1]
    ids = ids.masked_fill_(missing, 0)
    values = logits.gather(-1, ids).masked_fill_(missing, -torch.inf)
    return *_descending(values, ids), counts[:, -1] <= width


def _descending(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """(B,): the place in `weights` (B, C) at which the running sum passes the share `draws` (B,) of the row's total."""
    return _find(weights, draws * weights.sum(-1))


def _invert_blocks(weights: Tensor, draws: Tensor) -> Tensor:
    """`_invert` for many columns: first the block, then the place in it."""
    vocabulary = weights.shape[-1]
    whole = vocabulary // BLOCK
    sums = torch.unflatten(weights[:, : whole * BLOCK], -1, (whole, BLOCK)).sum(-1) if whole else weights[:, :0]
    if whole * BLOCK < vocabulary:
        sums = torch.cat([sums, weights[:, whole * BLOCK :].sum(-1, keepdim=True)], -1)
    sums = sums.double()
    points = draws * sums.sum(-1)
    block = _find(sums, points)
    points = points - (sums.cumsum(-1) - sums).gather(-1, block.unsqueeze(-1)).squeeze(-1)
    columns = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = weights.gather(-1, columns.clamp_max(vocabulary - 1)).double().masked_fill_(columns >= vocabulary, 0.0)
    return block * BLOCK + _find(inside, points)


def _find(weights: Tensor, points: Tensor) -> Tensor:
    """(B,): the first place where the running sum of `weights` (B, C) exceeds `points` (B,)."""
    chosen = torch.searchsorted(weights.cumsum(-1), points.unsqueeze(-1), right=True).squeeze(-1)
    # a point is below the row's total up to rounding, and must not pass the last token with weight
    last = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)
