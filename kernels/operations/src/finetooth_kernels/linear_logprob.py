"""Hidden states through the head to per-target log-probabilities, without ever holding more than a chunk of logits.

Rows are taken a chunk at a time; a chunk's logits live in one buffer that every chunk reuses. Inside a chunk,
everything after the matrix product works on small blocks of rows, in place, so that no second buffer of the chunk's
size exists. Two ways to the gradients:

*Frozen head, one target per row* (adapters: the common case). The gradient of row i's log-probability with respect to
its hidden state is a vector of length D that is known in the forward pass, and the backward pass only scales it by
the incoming gradient. So it is formed at once, from the logits that are there anyway: two matrix products over the
vocabulary instead of three, and nothing but (N, D) is kept.

*Trained head, one target per row, and a caller who expects what the gradients of the log-probabilities will be in
proportion to* (cross entropy: the weights of the targets). The gradient of the head is a sum over rows, so it is formed
in the forward pass from what is expected: three products instead of four. The backward pass finds the factor; should
the gradients that come not be in proportion, it goes the other way.

*Otherwise* (K targets, a gradient through the entropy, a bias that trains, nothing expected, a head that trains in
float16) the backward pass computes each chunk's logits again.

A low-rank addition to the head is one more product onto each chunk's logits, with gradients of its own: those of B as
of a head that trains, without anything of the size of the head.

With p = softmax(z), the gradients that both use are

    d logprob_k / d z_v = [v = target_k] - p_v
    d entropy   / d z_v = -p_v (log p_v + entropy)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from finetooth_kernels.autograd import once_differentiable
from finetooth_kernels.chunked_head import FactorGradients, Head, Sizes, Workspace, linear_dtype
from finetooth_kernels.compiled import NOTHING, Compiled
from finetooth_kernels.contract import (
    DEFAULT_CHUNK_BYTES,
    Availability,
    LinearLogprob,
    check_arguments,
    refused_dtype,
    result_dtype,
)
from finetooth_kernels.counted_rows import CountedRows, as_autocast, without_autocast
from finetooth_kernels.sums import scaled

__all__ = ["DEFAULT_CHUNK_BYTES", "LinearLogprob", "available", "foresees", "linear_logprob"]

_LOWEST_LOG_PROBABILITY = -1000.0
"""exp() of it is 0 in float64 too: it stands in for -inf (a vocabulary entry switched off), where 0 * inf is NaN."""

_ROUNDINGS = 8.0
"""How many of them may lie between the gradients that were expected and those that came."""


def available(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Availability:
    """Say whether the chunked implementation can run on `device`, for inputs of `dtype` if one is given."""
    if refusal := refused_dtype(dtype):
        return refusal
    kind = torch.device(device).type
    if kind == "cpu":
        return Availability(True, "plain torch operations run on every CPU")
    if kind == "cuda" and not torch.cuda.is_available():
        return Availability(False, "torch sees no CUDA or ROCm device")
    return Availability(True, f"plain torch operations run on {kind}")


def foresees(dtype: torch.dtype, targets: int, *, trains_bias: bool) -> bool:
    """Whether `expected` spares a head that trains the second computation of its logits.

    Args:
        dtype: of the head. In float16 a chunk's sum might overflow before any loss scale can help.
        targets: a row.
        trains_bias: the head's bias trains too.
    """
    return targets == 1 and not trains_bias and dtype != torch.float16


def linear_logprob(
    hidden_nd: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    bias_v: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    top1: bool = False,
    expected: Tensor | None = None,
    chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    added: tuple[Tensor, Tensor] | None = None,
    compiled: Compiled = NOTHING,
) -> LinearLogprob:
    """Log-probability of each row's target(s) under the head, and the entropy, both differentiable.

    The head, in this order::

        x = scale * (hidden_nd @ weight_vd.T + added[0] @ added[1].T + bias_v)
                                                            scale: what the family multiplies its logits by
        y = softcap * tanh(x / softcap)                     y = x without a softcap
        z = y / temperature                                 what sampling at that temperature draws from
        logprob = z[target] - logsumexp(z)
        entropy = -sum(softmax(z) * log_softmax(z))

    The matrix products run in the dtype of the inputs, everything between them in float32; float64 stays float64
    throughout. Gradients reach `hidden_nd`, `weight_vd` and `bias_v`, each only where it requires one; gradients of the
    weight are summed over chunks in float32. It has no second derivatives.

    Memory without inputs and gradients: `chunk_bytes`, scratch included, whatever N and the vocabulary; or what one row
    takes (its logits and up to three blocks of scratch of the same size) where that is more. A frozen head also keeps
    one vector of length D per row for the backward pass; with `expected` a trained one does, and the gradient of the
    weight in float32, which is there twice where it proves wrong. The result depends on the chunking only by the
    rounding of the matrix products. Under autocast, inputs are cast as `torch.nn.functional.linear` would.

    Args:
        hidden_nd: (N, D) hidden states; float32, bfloat16, float16 or float64.
        weight_vd: (V, D) weight of the head, in the same dtype.
        targets: (N,) or (N, K) int64 token ids, already aligned with the hidden states.
        mask: (N,) bool. Only rows where it is true are computed at all; the others are 0 in every result, take and give
            no gradient, and their targets may be anything. None: all rows.
        bias_v: (V,) bias of the head, in the same dtype; -inf switches an entry off (without a softcap).
        scale: factor on the head's output.
        softcap: bound of the logits (Gemma 2), or None.
        temperature: sampling temperature.
        entropy: whether to return the entropy too. Taking a gradient through it computes the logits a second time.
        top1: whether to return the id of each row's largest logit too, for which token accuracy needs no logits.
        expected: (N,) or (N, K), numbers proportional to the later gradients of the log-probabilities, by any factor,
            where the caller knows. It saves computing the logits a second time where the weight trains; the gradients
            are the same, but for rounding, whether it proves right or wrong.
        chunk_bytes: upper bound, counted in float32 logits, of the memory in use at once.
        added: rows (N, R) and weight (V, R) of an addition to the head, in the same dtype: x A^T and s B of a LoRA.
        compiled: kernels that take part of the work.

    Raises:
        ValueError: naming the argument, for shapes, dtypes or devices that do not fit, a target out of range in a row
            that counts, `softcap`, `temperature` or `chunk_bytes` not positive, or a number that is not finite.
    """
    hidden_nd, weight_vd, bias_v = as_autocast(hidden_nd, weight_vd, bias_v)
    if added is not None:
        rows, weight, _ = as_autocast(*added, None)
        added = rows.contiguous(), weight.contiguous()  # as the compiled products read them
    check_arguments(
        hidden_nd, weight_vd, targets, mask, bias_v, added,
        scale=scale, softcap=softcap, temperature=temperature, expected=expected, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    counted = CountedRows.of(hidden_nd, targets, mask, weight_vd.shape[0], expected)
    head = Head(scale, softcap, temperature)
    linear = linear_dtype(counted.hidden_md, weight_vd, bias_v, compiled)
    sizes = Sizes.within(chunk_bytes, weight_vd.shape[0], hidden_nd.dtype, hidden_nd.device, linear)
    low_nr, b_vr = (None, None) if added is None else added
    low_mr = low_nr if low_nr is None or counted.rows_m is None else low_nr.index_select(0, counted.rows_m)
    logprobs_mk, entropy_m, top1_m = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        counted.hidden_md, weight_vd, bias_v, low_mr, b_vr, counted.targets_mk, counted.expected_mk, head, sizes,
        entropy, top1, torch.is_grad_enabled(), compiled,
    )  # fmt: skip
    return counted.result(logprobs_mk, entropy_m if entropy else None, top1_m if top1 else None)


class _Foreseen(NamedTuple):
    """Gradients that a forward pass made, all but a factor; all None where it made nothing. There are two of a kind:
    for the head and for what is added to it.

    Attributes:
        slopes: d logprob / d rows (M, ...); None: they take no gradient.
        expected_m1: proportional to the later incoming gradients; None: no weight trains.
        d_weights: gradients of the weights if they are just that, in their own precision or a wider one.
    """

    slopes: Sequence[Tensor | None] = (None, None)
    expected_m1: Tensor | None = None
    d_weights: Sequence[Tensor | None] = (None, None)

    def gradients(self, d_logprobs_m1: Tensor, dtype: torch.dtype, compiled: Compiled = NOTHING) -> _Gradients | None:
        """Scaled by the actual gradients; None if those are not proportional to the expected ones.

        Args:
            dtype: of the results.
        """
        if all(made is None for made in (*self.slopes, *self.d_weights)):
            return None
        factor = None
        if self.expected_m1 is not None:
            factor = _common_factor(d_logprobs_m1, self.expected_m1)
            if factor is None:
                return None
        # not in place: backward may run again
        d_weights = [None if of is None or factor is None else scaled(of, dtype, factor, compiled)
                     for of in self.d_weights]  # fmt: skip
        d_rows = [None if slopes is None else (slopes * d_logprobs_m1).to(dtype) for slopes in self.slopes]
        return d_rows[0], d_weights[0], None, d_rows[1], d_weights[1]


_Gradients = tuple[Tensor | None, ...]
"""With respect to hidden, weight, bias, and the two factors that are added; None where none is wanted."""
_Wanted = tuple[tuple[bool, bool], tuple[bool, bool]]
"""Of the head and of what is added: whether rows and weight take gradients."""


def _common_factor(came_m1: Tensor, expected_m1: Tensor) -> Tensor | None:
    """The factor from `expected_m1` to `came_m1`, up to rounding; None: no factor fits."""
    if expected_m1.numel() == 0:
        return None
    at = expected_m1.abs().argmax()
    largest, came = expected_m1.flatten()[at], came_m1.flatten()[at]
    factor = torch.where(largest == 0, 0, came / largest).to(expected_m1.dtype)  # if none is expected, none may come
    foreseen_m1 = expected_m1 * factor
    limit = foreseen_m1.abs().mul_(_ROUNDINGS * torch.finfo(came_m1.dtype).eps)
    fits = (came_m1 - foreseen_m1).abs_() <= limit  # false where anything is not a number
    return factor if bool(fits.all()) else None


class _Scores(NamedTuple):
    """The result of one pass over the counted rows; log_normalizer is the log-sum-exp of the logits."""

    logprobs_mk: Tensor
    log_normalizer_m1: Tensor
    entropy_m: Tensor  # (0,) when not asked for
    top1_m: Tensor  # likewise


class _LinearLogprob(torch.autograd.Function):
    """From the M rows that count to log-probabilities (M, K), entropy and top-1 (M,), each (0,) when not asked for."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_md: Tensor,
        weight_vd: Tensor,
        bias_v: Tensor | None,
        low_mr: Tensor | None,
        b_vr: Tensor | None,
        targets_mk: Tensor,
        expected_mk: Tensor | None,
        head: Head,
        sizes: Sizes,
        want_entropy: bool,
        want_top1: bool,
        grad_enabled: bool,
        compiled: Compiled,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias, needs_low, needs_b = ctx.needs_input_grad[:5]
        targets, wanted = targets_mk.shape[1], ((needs_hidden, needs_weight), (needs_low, needs_b))
        trains = needs_weight or needs_b
        at_once = grad_enabled and any(map(any, wanted)) and not needs_bias and targets == 1
        if trains:
            at_once &= expected_mk is not None and foresees(hidden_md.dtype, targets, trains_bias=needs_bias)
        added = None if low_mr is None or b_vr is None else (low_mr, b_vr)
        with without_autocast(hidden_md.device):
            space = Workspace(hidden_md, weight_vd, bias_v, sizes, compiled, added)
            scores, foreseen = _score(
                space, targets_mk, head, expected_mk if at_once and trains else None,
                want_entropy=want_entropy, want_top1=want_top1, wanted=wanted if at_once else None,
            )  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.head, ctx.sizes, ctx.dtype, ctx.compiled = head, sizes, hidden_md.dtype, compiled
        ctx.wanted = wanted
        certain = at_once and not trains and not want_entropy
        again = (hidden_md, weight_vd, bias_v, low_mr, b_vr, targets_mk, scores.log_normalizer_m1, scores.entropy_m)
        made = (*foreseen.slopes, foreseen.expected_m1, *foreseen.d_weights)
        ctx.save_for_backward(*made, *(() if certain else again))
        ctx.mark_non_differentiable(scores.top1_m)
        return scores.logprobs_mk, scores.entropy_m, scores.top1_m

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_logprobs_mk: Tensor | None, d_entropy_m: Tensor | None, _d_top1: None
    ) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        foreseen, again = _Foreseen(saved[:2], saved[2], saved[3:5]), saved[5:]
        # The head's constant slope is applied here, to (M, K) numbers, and not to (M, V).
        d_logprobs_mk = None if d_logprobs_mk is None else d_logprobs_mk * ctx.head.slope
        d_entropy_m1 = None if d_entropy_m is None else d_entropy_m.unsqueeze(1) * ctx.head.slope
        grads: _Gradients | None = None
        if d_logprobs_mk is not None and d_entropy_m1 is None:
            grads = foreseen.gradients(d_logprobs_mk, ctx.dtype, ctx.compiled)
        if grads is None and (d_logprobs_mk is not None or d_entropy_m1 is not None):
            hidden_md, weight_vd, bias_v, low_mr, b_vr, targets_mk, log_normalizer_m1, entropy_m = again
            if d_logprobs_mk is None:
                d_logprobs_mk = log_normalizer_m1.new_zeros(targets_mk.shape)
            incoming = _Incoming(
                targets_mk,
                d_logprobs_mk,
                log_normalizer_m1,
                entropy_m.unsqueeze(1) if d_entropy_m1 is not None else None,
                d_entropy_m1,
            )
            with without_autocast(hidden_md.device):
                added = None if low_mr is None else (low_mr, b_vr)
                space = Workspace(hidden_md, weight_vd, bias_v, ctx.sizes, ctx.compiled, added)
                grads = _gradients(space, ctx.head, incoming, ctx.wanted, needs_bias=ctx.needs_input_grad[2])
        return (*(grads or (None,) * 5), *(None,) * 8)


def _score(
    space: Workspace, targets_mk: Tensor, head: Head, expected_m1: Tensor | None,
    *, want_entropy: bool, want_top1: bool, wanted: _Wanted | None,
) -> tuple[_Scores, _Foreseen]:  # fmt: skip
    """Log-probabilities, and what else is asked for, in one pass over the logits; with `wanted` gradients too, those of
    weights in proportion to `expected_m1`."""
    rows, work = targets_mk.shape[0], result_dtype(space.hidden.dtype)
    scores = _Scores(
        logprobs_mk=space.hidden.new_empty(targets_mk.shape, dtype=work),
        log_normalizer_m1=space.hidden.new_empty((rows, 1), dtype=work),
        entropy_m=space.hidden.new_empty(rows if want_entropy else 0, dtype=work),
        top1_m=targets_mk.new_empty(rows if want_top1 else 0),
    )
    gradients = None if wanted is None else FactorGradients(space, wanted)
    for chunk in space.sizes.chunks(rows):
        linear = space.linear(chunk)
        kernels = space.compiled.library_for(linear) if head.softcap is None else None
        if kernels is None:
            _score_blocks(space, chunk, targets_mk, head, scores, want_gradient=gradients is not None)
        else:
            kernels.head_rows(
                linear,
                targets_mk[chunk].contiguous(),
                scores.logprobs_mk[chunk],
                scores.log_normalizer_m1[chunk],
                scores.entropy_m[chunk] if want_entropy else None,
                scores.top1_m[chunk] if want_top1 else None,
                head.slope,
                gradient=None if gradients is None else space.hidden.dtype,
            )
        if gradients is not None:
            gradients.add(chunk, space.gradient(len(linear)), expected_m1)
    if gradients is None:
        return scores, _Foreseen()
    totals = [None if of is None else of.total() for of in gradients.weights]
    return scores, _Foreseen(_pair(gradients.rows), expected_m1, _pair(totals))


def _pair(of: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """One for the head, and one for what is added, where that is nothing too."""
    return (*of, None)[:2]


def _score_blocks(
    space: Workspace, chunk: slice, targets_mk: Tensor, head: Head, scores: _Scores, *, want_gradient: bool
) -> None:
    """Score the rows of a chunk; where it is wanted, the gradient takes the place of its linear output."""
    for block, piece in space.blocks(chunk):
        logits = head.logits_(space.in_full_precision(piece))
        damping = head.damping(logits, space) if want_gradient else None
        shifted, log_total = _score_block(logits, space.scratch(piece.shape[0]), targets_mk[block], scores, block)
        if want_gradient:
            unit = _Incoming(targets_mk[block], torch.ones_like(log_total), log_total)
            gradient = _logit_gradient_(shifted, space.scratch(piece.shape[0]), unit, damping)
            space.keep_gradient(chunk, block, gradient)


def _score_block(
    logits: Tensor, scratch: Tensor, targets: Tensor, scores: _Scores, block: slice
) -> tuple[Tensor, Tensor]:
    """Write the scores of one block of rows; return its logits less each row's largest, and their log-sum-exp."""
    taken = logits.gather(1, targets)
    if scores.top1_m.shape[0]:
        top, ids = logits.max(1, keepdim=True)  # the first of equal ones
        scores.top1_m[block] = ids.squeeze(1)
    else:
        top = logits.amax(1, keepdim=True)
    shifted = logits.sub_(top)
    exponentials = torch.exp(shifted, out=scratch)
    total = exponentials.sum(1, keepdim=True)
    log_total = total.log()
    scores.logprobs_mk[block] = taken - top - log_total
    scores.log_normalizer_m1[block] = top + log_total
    if scores.entropy_m.shape[0]:
        # Relative to the largest logit both terms are >= 0: no cancellation, however large the logits are.
        weighted = exponentials.mul_(shifted.clamp_min_(_LOWEST_LOG_PROBABILITY))
        scores.entropy_m[block] = (log_total - weighted.sum(1, keepdim=True) / total).squeeze(1)
    return shifted, log_total


class _Incoming(NamedTuple):
    """Data for the gradient of some rows; one line of each tensor per row."""

    targets_mk: Tensor
    d_logprobs_mk: Tensor
    log_normalizer_m1: Tensor
    entropy_m1: Tensor | None = None
    d_entropy_m1: Tensor | None = None

    def rows(self, block: slice) -> _Incoming:
        return _Incoming(
            self.targets_mk[block],
            self.d_logprobs_mk[block],
            self.log_normalizer_m1[block],
            None if self.entropy_m1 is None else self.entropy_m1[block],
            None if self.d_entropy_m1 is None else self.d_entropy_m1[block],
        )


def _logit_gradient_(logits: Tensor, scratch: Tensor, incoming: _Incoming, damping: Tensor | None) -> Tensor:
    """Gradient with respect to the linear output of one block, but for `Head.slope`; overwrites `logits`.

    `logits` may be shifted by a constant per row if the incoming log_normalizer is shifted likewise.
    """
    targets, d_logprobs, log_normalizer, entropy, d_entropy = incoming
    log_p = logits.sub_(log_normalizer)
    total = d_logprobs.sum(1, keepdim=True)
    if entropy is None or d_entropy is None:
        gradient = log_p.exp_().mul_(-total)
    else:
        p = torch.exp(log_p, out=scratch)
        gradient = log_p.clamp_min_(_LOWEST_LOG_PROBABILITY).add_(entropy).mul_(-d_entropy).sub_(total).mul_(p)
    if gradient.device.type == "cpu":
        gradient.scatter_add_(1, targets, d_logprobs)
    else:  # A target may occur twice in a row; adding one column at a time keeps the order of the sum fixed.
        for column in range(targets.shape[1]):
            at = slice(column, column + 1)
            gradient.scatter_add_(1, targets[:, at], d_logprobs[:, at])
    return gradient if damping is None else gradient.mul_(damping)


def _gradients(
    space: Workspace, head: Head, incoming: _Incoming, wanted: _Wanted, *, needs_bias: bool
) -> _Gradients:  # fmt: skip
    """Compute each chunk's logits again and send the gradients through them."""
    gradients = FactorGradients(space, wanted)
    d_bias = incoming.d_logprobs_mk.new_zeros(space.weight.shape[0]) if needs_bias else None
    for chunk in space.sizes.chunks(space.hidden.shape[0]):
        linear = space.linear(chunk)
        for block, piece in space.blocks(chunk):
            logits = head.logits_(space.in_full_precision(piece))
            damping = head.damping(logits, space)
            gradient = _logit_gradient_(logits, space.scratch(piece.shape[0]), incoming.rows(block), damping)
            if d_bias is not None:
                d_bias += gradient.sum(0)
            space.keep_gradient(chunk, block, gradient)
        gradients.add(chunk, space.gradient(len(linear)))
    d_hidden, d_low = _pair(gradients.rows)
    d_weight, d_b = _pair([None if of is None else of.result() for of in gradients.weights])
    return d_hidden, d_weight, None if d_bias is None else d_bias.to(space.weight.dtype), d_low, d_b
