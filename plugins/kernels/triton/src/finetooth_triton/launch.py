"""How the Triton kernels of `linear_logprob` are launched: which operands, in which tiles, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from finetooth_kernels.chunked_head import Head
from torch import Tensor

from finetooth_triton import gpu

ROW_COLUMNS = 4096
"""Columns that a program of the row kernels takes at a time."""
ROW_WARPS = 8


@dataclass(frozen=True)
class Operands:
    """The head's inputs for the M rows that count: hidden (M, D), weight (V, D), bias (V,); targets are contiguous."""

    hidden_md: Tensor
    weight_vd: Tensor
    bias_v: Tensor | None
    targets_mk: Tensor
    head: Head

    @property
    def factors(self) -> tuple[float, float]:
        """inner and outer of `softmax.capped`."""
        head = self.head
        if head.softcap is None:
            return head.slope, 1.0
        return head.scale / head.softcap, head.softcap / head.temperature


class Scores(NamedTuple):
    """What a forward pass yields for the M rows, float32; entropy and top1 are (0,) when not asked for.

    peak is a row's largest logit and log_total the logarithm of sum(exp(logit - peak)): kept apart, so that large
    logits cost no precision.
    """

    logprobs_mk: Tensor
    peak_m: Tensor
    log_total_m: Tensor
    entropy_m: Tensor
    top1_m: Tensor

    @staticmethod
    def empty(operands: Operands, entropy: bool, top1: bool) -> Scores:
        """Room for them."""
        targets, rows = operands.targets_mk, operands.targets_mk.shape[0]
        numbers = torch.empty((3, rows), dtype=torch.float32, device=targets.device)
        return Scores(
            torch.empty_like(targets, dtype=torch.float32),
            numbers[0], numbers[1], numbers[2] if entropy else numbers[2, :0],
            targets.new_empty(rows if top1 else 0),
        )  # fmt: skip


def statistics(operands: Operands, entropy: bool, top1: bool) -> Scores:
    """Scores without a logit in memory."""
    rows, vocabulary = operands.hidden_md.shape[0], operands.weight_vd.shape[0]
    if rows == 0:
        return Scores.empty(operands, entropy, top1)
    from finetooth_triton.head_kernels import head_statistics_kernel

    device = operands.hidden_md.device
    tiles = gpu.tiles_for(operands.hidden_md.dtype, device)
    row_blocks, column_blocks = -(-rows // tiles.rows), -(-vocabulary // tiles.columns)
    per_split = -(-column_blocks // gpu.splits_for(row_blocks, column_blocks, device))
    splits = -(-column_blocks // per_split)
    parts = torch.empty((3, splits, rows), dtype=torch.float32, device=device)
    tops = torch.empty((splits, rows) if top1 else (0,), dtype=torch.int32, device=device)
    taken = torch.empty_like(operands.targets_mk, dtype=torch.float32)
    arguments, options = _common(operands, tiles)
    head_statistics_kernel[(row_blocks * splits,)](
        *arguments, parts[0], parts[1], parts[2], tops, taken,
        M=rows, V=vocabulary, K=operands.targets_mk.shape[1],
        splits=splits, columns_per_split=per_split * tiles.columns,
        WITH_ENTROPY=entropy, WITH_TOP1=top1, **options,
    )  # fmt: skip
    return _combined(parts, tops, taken, entropy, top1)


def _combined(parts: Tensor, tops: Tensor, taken_mk: Tensor, entropy: bool, top1: bool) -> Scores:
    """Merge the parts of the vocabulary, (3, splits, M): the same algebra as `softmax.fold`."""
    peaks, totals, weighteds = parts
    peak, where = peaks.max(0, keepdim=True)  # the first of equal ones, so the lowest ids
    drop = (peaks - peak).clamp_min_(-1000.0)
    rescale = drop.exp()
    total = (totals * rescale).sum(0)
    log_total = total.log()
    peak_m = peak[0]
    entropy_m = peak_m.new_empty(0)
    if entropy:
        entropy_m = log_total - (rescale * (weighteds + drop * totals)).sum(0) / total
    top1_m = tops.gather(0, where)[0].long() if top1 else tops.new_empty(0, dtype=torch.int64)
    return Scores((taken_mk - peak_m[:, None]) - log_total[:, None], peak_m, log_total, entropy_m, top1_m)


def gradient_tiles(
    operands: Operands,
    incoming: Scores,
    d_entropy_m: Tensor | None,
    rows: slice,
    columns: slice,
    out: Tensor,
) -> None:
    """Write to `out` (rows, columns) the gradient with respect to the linear output, but for `Head.slope`.

    `incoming.logprobs_mk` holds the incoming gradient of the log-probabilities, the rest what the forward pass found.
    """
    from finetooth_triton.head_kernels import head_gradient_kernel

    part = Operands(
        operands.hidden_md[rows],
        operands.weight_vd[columns],
        None if operands.bias_v is None else operands.bias_v[columns],
        operands.targets_mk[rows],
        operands.head,
    )
    tiles = gpu.tiles_for(out.dtype, out.device)
    row_blocks, column_blocks = -(-out.shape[0] // tiles.rows), -(-out.shape[1] // tiles.columns)
    peak = incoming.peak_m[rows]
    arguments, options = _common(part, tiles)
    head_gradient_kernel[(row_blocks * column_blocks,)](
        *arguments, peak, incoming.log_total_m[rows], peak if d_entropy_m is None else incoming.entropy_m[rows],
        incoming.logprobs_mk[rows], peak if d_entropy_m is None else d_entropy_m[rows], out,
        M=out.shape[0], V=out.shape[1], K=part.targets_mk.shape[1], first_column=columns.start, stride_gm=out.stride(0),
        WITH_ENTROPY=d_entropy_m is not None, **options,
    )  # fmt: skip


def _common(operands: Operands, tiles: gpu.Tiles) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The leading arguments of both head kernels, and the keywords they share."""
    hidden, weight, bias = operands.hidden_md, operands.weight_vd, operands.bias_v
    inner, outer = operands.factors
    options = {
        "D": hidden.shape[1],
        "stride_hm": hidden.stride(0),
        "stride_hd": hidden.stride(1),
        "stride_wv": weight.stride(0),
        "stride_wd": weight.stride(1),
        "stride_b": 0 if bias is None else bias.stride(0),
        "inner": inner,
        "outer": outer,
        "HAS_BIAS": bias is not None,
        "HAS_SOFTCAP": operands.head.softcap is not None,
        "WHOLE_DEPTH": hidden.shape[1] % tiles.depth == 0,
        "PRECISION": gpu.product_precision(hidden.dtype),
        "WIDEN": gpu.interpreted() and hidden.dtype == torch.bfloat16,
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "DEPTH": tiles.depth,
        "GROUP": tiles.group,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
    return (hidden, weight, weight if bias is None else bias, operands.targets_mk), options


def row_scores_(linear: Tensor, operands: Operands, scores: Scores, rows: slice) -> None:
    """Write the scores of `rows` from the head's linear output (rows, V), and turn that into d logprob / d linear.

    For one target per row. The result leaves out `Head.slope`.
    """
    from finetooth_triton.row_kernels import row_gradient_kernel, row_statistics_kernel

    count, vocabulary = linear.shape
    inner, outer = operands.factors
    targets, peaks, log_totals = operands.targets_mk[rows], scores.peak_m[rows], scores.log_total_m[rows]
    entropies = scores.entropy_m[rows] if scores.entropy_m.shape[0] else peaks
    tops = scores.top1_m[rows] if scores.top1_m.shape[0] else targets
    shared = {
        "V": vocabulary, "K": 1,
        "rows_inner": count, "stride_outer": 0, "stride_inner": linear.stride(0), "stride_v": 1,
        "inner": inner, "outer": outer, "HAS_SOFTCAP": operands.head.softcap is not None,
        "COLUMNS": ROW_COLUMNS, "num_warps": ROW_WARPS,
    }  # fmt: skip
    row_statistics_kernel[(count,)](
        linear, targets, peaks, log_totals, entropies, tops, scores.logprobs_mk[rows],
        WITH_ENTROPY=scores.entropy_m.shape[0] > 0, WITH_TOP1=scores.top1_m.shape[0] > 0, **shared,
    )  # fmt: skip
    row_gradient_kernel[(count, -(-vocabulary // ROW_COLUMNS))](
        linear, linear, targets, peaks, log_totals, torch.ones_like(peaks), stride_gm=linear.stride(0), **shared
    )
