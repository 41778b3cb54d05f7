"""The operations as their definitions read: float64, torch's own derivatives. For tests and doubt.

Each takes the arguments of its operation (`finetooth_kernels.operations`), and rounds once, at the very end. `arena`,
`again`, `passing` and `out` say where numbers lie, not what they are, and are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finetooth_kernels.contract import (
    DEFAULT_CHUNK_BYTES,
    Availability,
    LinearLogprob,
    check_arguments,
    check_targets,
    refused_dtype,
    result_dtype,
)
from finetooth_kernels.dropout import mixed
from finetooth_kernels.fp8 import E4M3, E5M2, rounded
from finetooth_kernels.logits import LogitsStatistics
from finetooth_kernels.runs import Run
from finetooth_kernels.segments import Looks, Segment, check_segments

__all__ = [
    "accumulate",
    "available",
    "cached_attention",
    "fp8_linear",
    "gated_mlp",
    "gated_norm",
    "grouped_matmul",
    "keyed_dropout",
    "linear_logprob",
    "logits_statistics",
    "low_rank_linear",
    "matmul_rounded_once",
    "norm_rotary",
    "packed_linear",
    "rms_norm",
    "rotary",
    "segment_attention",
    "windowed_attention",
]


def logits_statistics(logits: Tensor, index: Tensor | None = None, *, entropy: bool = False) -> LogitsStatistics:
    """See `finetooth_kernels.logits.logits_statistics`."""
    wide = result_dtype(logits.dtype)
    log_p = torch.log_softmax(logits.double(), -1)
    ids = logits.detach().argmax(-1) if index is None else index
    if index is None:
        log_p = log_p.detach()
    single = ids.dim() == logits.dim() - 1
    taken = log_p.gather(-1, ids.unsqueeze(-1) if single else ids)
    p = log_p.detach().exp()
    of_all = -(p * torch.where(p > 0, log_p.detach(), 0.0)).sum(-1).to(wide) if entropy else None
    return LogitsStatistics(ids, (taken.squeeze(-1) if single else taken).to(wide), of_all)


def rms_norm(x_nd: Tensor, weight_d: Tensor, eps: float, arena: Any = None, *, residual: bool = False) -> Any:
    """See `finetooth_kernels.rms_norm.rms_norm`."""
    wide = x_nd.double()
    y = wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_d.double()
    return (x_nd, y.to(weight_d.dtype)) if residual else y.to(weight_d.dtype)


def rotary(x_nhd: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, arena: Any = None) -> Tensor:
    """See `finetooth_kernels.rotary.rotate`."""
    half = cos_nr.shape[-1]
    turned, rest = x_nhd[:, :heads].double(), x_nhd[:, heads:].double()
    first, second, beyond = torch.split(turned, [half, half, x_nhd.shape[-1] - 2 * half], -1)
    cos, sin = cos_nr.double().unsqueeze(1), sin_nr.double().unsqueeze(1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin, beyond], -1)
    return torch.cat([turned, rest], 1).to(x_nhd.dtype)


def norm_rotary(
    x_nhd: Tensor, query_weight_d: Tensor, key_weight_d: Tensor, cos_nr: Tensor, sin_nr: Tensor, heads: int, eps: float,
    arena: Any = None,
) -> Tensor:  # fmt: skip
    """See `finetooth_kernels.rotary.norm_rotary`."""
    wide, turned = x_nhd.double(), (x_nhd.shape[1] + heads) // 2
    weights = [query_weight_d.double()] * heads + [key_weight_d.double()] * (turned - heads)
    normed = wide[:, :turned] * (wide[:, :turned].square().mean(-1, keepdim=True) + eps).rsqrt() * torch.stack(weights)
    return rotary(torch.cat([normed, wide[:, turned:]], 1), cos_nr, sin_nr, turned).to(x_nhd.dtype)


def gated_norm(x_nd: Tensor, gate_nd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """Rows normalised, times a weight and an activated gate: w silu(z) x / sqrt(mean(x^2) + eps), as in the linear
    attention of Qwen3-Next.

    Args:
        x_nd: (N, D).
        gate_nd: (N, D), z.
        weight_d: (D,).
        eps: added to the mean square.

    Returns:
        (N, D) in the dtype of `x_nd`.
    """
    normed: Tensor = rms_norm(x_nd.double(), weight_d.double(), eps)
    return (normed * functional.silu(gate_nd.double())).to(x_nd.dtype)


def gated_mlp(gate_up_nf: Tensor, activation: str = "silu") -> Tensor:
    """See `finetooth_kernels.gated.gated`."""
    gate, up = gate_up_nf.double().chunk(2, -1)
    if activation == "silu":
        return (functional.silu(gate) * up).to(gate_up_nf.dtype)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return (functional.gelu(gate, approximate=approximate) * up).to(gate_up_nf.dtype)


def low_rank_linear(
    x_nd: Tensor,
    weight_od: Tensor,
    bias_o: Tensor | None,
    sizes: Sequence[int],
    additions: Sequence[tuple[Tensor, Tensor, float] | None],
    trained: Sequence[Tensor | None] = (),
    again: Any = None,
    base_no: Tensor | None = None,
    arena: Any = None,
    *,
    passing: bool = False,
    magnitudes: Sequence[Tensor | None] = (),
    dropped: Sequence[Any] = (),
    multiply: Any = None,
) -> Tensor:
    """See `finetooth_kernels.low_rank_linear.low_rank_linear`."""
    del multiply
    own = list(torch.split(weight_od.detach().double(), list(sizes)))
    weights = [w if t is None else t.double() for w, t in zip(own, trained, strict=True)] if trained else own
    x = x_nd.double()
    parts = []
    none = [None] * len(sizes)
    of_layers = zip(weights, additions, magnitudes or none, dropped or none, strict=True)
    for weight, addition, magnitude, drops in of_layers:
        part = x @ weight.t()
        if addition is not None:
            a, b, scale = (addition[0].double(), addition[1].double(), addition[2])
            read = x if drops is None else keyed_dropout(x, *drops[:4])
            part = part + scale * (read @ a.t()) @ b.t()
            if magnitude is not None:
                part = part * (magnitude.double() / (weight + scale * b @ a).detach().norm(dim=1))
        parts.append(part)
    out = torch.cat(parts, -1)
    out = out if bias_o is None else out + bias_o.double()
    return out.to(x_nd.dtype) if base_no is None else (out + base_no.double()).to(base_no.dtype)


def matmul_rounded_once(
    left_nk: Tensor, right_ko: Tensor, *, more: tuple[Tensor, Tensor] | None = None, bias_o: Tensor | None = None,
    base_no: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """See `finetooth_kernels.mm.mm`."""
    product = left_nk.double() @ right_ko.double()
    product = product if more is None else product + more[0].double() @ more[1].double()
    product = product if bias_o is None else product + bias_o.double()
    product = product if base_no is None else product + base_no.double()
    rounded = product.to(left_nk.dtype if base_no is None else base_no.dtype)
    return rounded if out is None else out.copy_(rounded if out.dtype == rounded.dtype else product)


def accumulate(total: Tensor | None, part: Tensor, dtype: torch.dtype) -> Tensor:
    """See `finetooth_kernels.sums.accumulate`."""
    return part.to(dtype) if total is None else total.copy_((total.double() + part.double()).to(dtype))


def segment_attention(
    qkv_nhd: Tensor, segments: Sequence[Segment], *, heads: int, kv_heads: int, scale: float, arena: Any = None
) -> Tensor:
    """See `finetooth_kernels.segment_attention.segment_attention`."""
    return windowed_attention(qkv_nhd, segments, Looks(scale), heads=heads, kv_heads=kv_heads)


def windowed_attention(
    qkv_nhd: Tensor, segments: Sequence[Segment], looks: Looks, *, heads: int, kv_heads: int
) -> Tensor:
    """See `finetooth_kernels.segment_attention.windowed_attention`."""
    rows, cap = qkv_nhd.shape[0], looks.softcap
    check_segments(segments, rows)
    seen = torch.zeros(rows, rows, dtype=torch.bool, device=qkv_nhd.device)
    for segment in segments:
        seen[segment.start : segment.stop, segment.start : segment.stop] = True
        seen[segment.stop : segment.below, segment.start : segment.stop] = True
    seen.tril_()
    q, k, v = torch.split(qkv_nhd.double().transpose(0, 1), [heads, kv_heads, kv_heads])
    k, v = (x.repeat_interleave(heads // kv_heads, 0) for x in (k, v))
    out = []
    for row in range(rows):  # one at a time: invisible positions must not affect a row, not even times 0
        at = seen[row].nonzero().squeeze(1)[-looks.window :]  # of 0 all
        scores = torch.einsum("hd,hcd->hc", q[:, row], k[:, at]) * looks.scale
        scores = scores if cap is None else cap * torch.tanh(scores / cap)
        joined = scores if looks.sinks is None else torch.cat([scores, looks.sinks.double()[:, None]], 1)
        out.append(torch.einsum("hc,hcd->hd", joined.softmax(-1)[:, : len(at)], v[:, at]))
    attended = torch.stack(out) if out else q.transpose(0, 1)
    return attended.to(qkv_nhd.dtype)


def cached_attention(like: Tensor, size: int) -> Callable[..., Tensor]:
    """Attention of one query a row to a cache: see `finetooth_kernels.operations`."""
    return _cached_attention


def _cached_attention(
    qkv_rhd: Tensor, own_hrkcd: Tensor, columns_1: Tensor, scale: float, *, starts_p: Tensor, samples: int = 1,
    above_hpkwd: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    kv_heads, columns = own_hrkcd.shape[2], int(columns_1)
    heads = qkv_rhd.shape[1] - 2 * kv_heads
    q, newest = qkv_rhd[:, :heads], torch.unflatten(qkv_rhd[:, heads:], 1, (2, kv_heads))
    own_hrkcd[:, :, :, columns - 1] = newest.transpose(0, 1)
    rows = []
    for row in range(qkv_rhd.shape[0]):
        start = int(starts_p[row // samples])
        seen = own_hrkcd[:, row, :, :columns].double()
        if above_hpkwd is None:
            seen = seen[:, :, start:]
        else:
            seen = torch.cat([above_hpkwd[:, row // samples, :, start:].double(), seen], 2)
        keys, values = (x.repeat_interleave(heads // kv_heads, 0) for x in seen)
        scores = torch.einsum("hd,hcd->hc", q[row].double(), keys) * scale
        rows.append(torch.einsum("hc,hcd->hd", scores.softmax(-1), values).flatten())
    attended = torch.stack(rows).to(qkv_rhd.dtype) if rows else qkv_rhd.new_empty((0, heads * qkv_rhd.shape[2]))
    return attended if out is None else out.copy_(attended)


class _Unpacked:
    """A weight that multiplies without preparation."""

    def __init__(self, weight_od: Tensor, bias_o: Tensor | None) -> None:
        self._weight, self._bias = weight_od.detach(), bias_o

    def __call__(
        self, x_nd: Tensor, *, base_no: Tensor | None = None, more: tuple[Tensor, _Unpacked] | None = None,
        own: tuple[Tensor, Sequence[Run]] | None = None, dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        y = x_nd.double() @ self._weight.double().t()
        if own is not None:
            of_nm, runs = own
            if not y.shape[1]:
                y = y.new_zeros((len(y), max((len(run.weight._weight) for run in runs), default=0)))
            for run in runs:
                weight = run.weight._weight.double()
                product = of_nm[run.start : run.stop, : weight.shape[1]].double() @ weight.t()
                y[run.start : run.stop, : len(weight)] += product
        y = y if more is None else y + more[0].double() @ more[1]._weight.double().t()
        y = y if self._bias is None else y + self._bias.double()
        y = y if base_no is None else y + base_no.double()
        return y.to(dtype or (x_nd.dtype if base_no is None else base_no.dtype))


def packed_linear(weight_od: Tensor, bias_o: Tensor | None = None) -> Callable[..., Tensor]:
    """x W^T + b for a weight that is multiplied with many times: see `finetooth_kernels.operations`.

    What it returns is called with (N, D), and by name

    * `base_no`: (N, O), added; of the dtype of the rows or a wider one, which the result gets;
    * `more`: (N, L) and what this made of a weight (O, L), whose product is added;
    * `own`, with the feature `runs`: (N, M), and runs of rows (`finetooth_kernels.runs`) with weights (up to O, up to
      M), whose products with the first columns of their rows are added. A weight without outputs adds nothing else, and
      the result has as many outputs as the runs' widest;
    * `dtype`: of the result.
    """
    return _Unpacked(weight_od, bias_o)


class _InEightBits(torch.autograd.Function):
    """x W^T as `finetooth_kernels.fp8` defines it: rounded tensors, exact products."""

    @staticmethod
    def forward(ctx: Any, x_nd: Tensor, weight_od: Tensor) -> Tensor:
        x, weight = _in_eight_bits(x_nd, E4M3), _in_eight_bits(weight_od, E4M3)
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = _in_eight_bits(grads[0], E5M2)
        return grad @ weight, grad.t() @ x


def _in_eight_bits(t: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers in float64 that a tensor is rounded to."""
    values, scale = rounded(t, dtype)
    return values.double() * scale.double()


def fp8_linear(x_nd: Tensor, weight_od: Tensor, bias_o: Tensor | None = None, base_no: Tensor | None = None) -> Tensor:
    """See `finetooth_kernels.fp8.fp8_linear`."""
    y: Tensor = _InEightBits.apply(x_nd.double(), weight_od.double())  # type: ignore[no-untyped-call]
    y = y if bias_o is None else y + bias_o.double()
    y = y if base_no is None else y + base_no.double()
    return y.to(x_nd.dtype)


def grouped_matmul(
    x_nd: Tensor, weight_gdo: Tensor, ends_g: Tensor, addition: tuple[Tensor, Tensor, float] | None = None
) -> Tensor:
    """See `finetooth_kernels.grouped.grouped_matmul`."""
    whole_gdo = weight_gdo.double()
    if addition is not None:
        whole_gdo = whole_gdo + addition[2] * (addition[0].double() @ addition[1].double())
    groups_n = torch.searchsorted(ends_g.long(), torch.arange(x_nd.shape[0], device=x_nd.device), right=True)
    return torch.einsum("nd,ndo->no", x_nd.double(), whole_gdo[groups_n]).to(x_nd.dtype)


def keyed_dropout(x_nd: Tensor, rows_n: Tensor, columns_d: Tensor, threshold: int, scale: float) -> Tensor:
    """See `finetooth_kernels.dropout.keyed_dropout`."""
    mask = mixed(rows_n[:, None] ^ columns_d) >= threshold
    return (x_nd.double() * mask * scale).to(x_nd.dtype)


def available(device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Availability:
    """Say whether the reference can run on `device`, for inputs of `dtype` if one is given; it needs float64."""
    if refusal := refused_dtype(dtype):
        return refusal
    kind = torch.device(device).type
    if kind == "mps":
        return Availability(False, "mps has no float64")
    if kind == "cuda" and not torch.cuda.is_available():
        return Availability(False, "torch sees no CUDA or ROCm device")
    return Availability(True, f"plain torch operations in float64 run on {kind}")


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
) -> LinearLogprob:
    """The same as `finetooth_kernels.linear_logprob.linear_logprob`, argument for argument, without saving memory.

    Holds the whole (N, V) logits in float64 several times over; `expected` and `chunk_bytes` are
    checked and otherwise ignored. The
    results are rounded to float32 (float64 for float64 inputs) at the very end.

    Raises:
        ValueError: as `linear_logprob` does.
    """
    check_arguments(
        hidden_nd, weight_vd, targets, mask, bias_v, added,
        scale=scale, softcap=softcap, temperature=temperature, expected=expected, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    rows = torch.arange(hidden_nd.shape[0], device=hidden_nd.device) if mask is None else mask.nonzero().squeeze(1)
    targets_nk = targets if targets.dim() == 2 else targets.unsqueeze(1)
    targets_mk = targets_nk[rows]
    check_targets(targets_mk, rows, weight_vd.shape[0])

    logits_mv = hidden_nd[rows].double() @ weight_vd.double().t()
    if added is not None:
        logits_mv = logits_mv + added[0][rows].double() @ added[1].double().t()
    if bias_v is not None:
        logits_mv = logits_mv + bias_v.double()
    logits_mv = logits_mv * scale
    if softcap is not None:
        logits_mv = softcap * torch.tanh(logits_mv / softcap)
    log_p_mv = torch.log_softmax(logits_mv / temperature, dim=1)

    dtype = result_dtype(hidden_nd.dtype)
    logprobs_nk = log_p_mv.new_zeros(targets_nk.shape).index_copy(0, rows, log_p_mv.gather(1, targets_mk)).to(dtype)
    logprobs = logprobs_nk if targets.dim() == 2 else logprobs_nk.squeeze(1)
    entropy_n = top1_n = None
    if entropy:
        p_mv = log_p_mv.exp()
        entropy_m = -(p_mv * torch.where(p_mv > 0, log_p_mv, 0.0)).sum(1)
        entropy_n = log_p_mv.new_zeros(hidden_nd.shape[0]).index_copy(0, rows, entropy_m).to(dtype)
    if top1:
        top1_n = targets.new_full((hidden_nd.shape[0],), -1).index_copy(0, rows, logits_mv.max(1).indices)
    return LinearLogprob(logprobs, entropy_n, top1_n)
