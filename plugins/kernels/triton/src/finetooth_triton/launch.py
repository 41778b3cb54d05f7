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


def linear(hidden_md: Tensor, weight_vd: Tensor, bias_v: Tensor | None) -> Tensor:
    """The head's linear output, (M, V) float32, from a kernel of our own; of half precision, M and V at least 1."""
    from finetooth_triton.head_kernels import head_linear_kernel

    rows, vocabulary = hidden_md.shape[0], weight_vd.shape[0]
    out = hidden_md.new_empty((rows, vocabulary), dtype=torch.float32)
    tiles = gpu.tiles_for(hidden_md.dtype, hidden_md.device)
    tensors, options = _common(hidden_md, weight_vd, bias_v, tiles)
    head_linear_kernel[(-(-rows // tiles.rows) * -(-vocabulary // tiles.columns),)](
        *tensors, out, M=rows, V=vocabulary, stride_om=out.stride(0), **options
    )
    return out


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
    tensors, options = _common(part.hidden_md, part.weight_vd, part.bias_v, tiles)
    inner, outer = part.factors
    head_gradient_kernel[(row_blocks * column_blocks,)](
        *tensors, part.targets_mk, peak, incoming.log_total_m[rows],
        peak if d_entropy_m is None else incoming.entropy_m[rows],
        incoming.logprobs_mk[rows], peak if d_entropy_m is None else d_entropy_m[rows], out,
        M=out.shape[0], V=out.shape[1], K=part.targets_mk.shape[1], first_column=columns.start, stride_gm=out.stride(0),
        inner=inner, outer=outer, HAS_SOFTCAP=part.head.softcap is not None,
        WITH_ENTROPY=d_entropy_m is not None, **options,
    )  # fmt: skip


def _common(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tiles: gpu.Tiles
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The leading arguments of both head kernels, and the keywords they share."""
    options = {
        "D": hidden.shape[1],
        "stride_hm": hidden.stride(0),
        "stride_hd": hidden.stride(1),
        "stride_wv": weight.stride(0),
        "stride_wd": weight.stride(1),
        "stride_b": 0 if bias is None else bias.stride(0),
        "HAS_BIAS": bias is not None,
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
    return (hidden, weight, weight if bias is None else bias), options


def row_scores(linear_mv: Tensor, operands: Operands, scores: Scores, rows: slice) -> None:
    """Write the scores of `rows` from the head's linear output for them (rows, V)."""
    from finetooth_triton.row_kernels import row_statistics_kernel

    targets, peaks, log_totals = operands.targets_mk[rows], scores.peak_m[rows], scores.log_total_m[rows]
    entropies = scores.entropy_m[rows] if scores.entropy_m.shape[0] else peaks
    tops = scores.top1_m[rows] if scores.top1_m.shape[0] else targets
    row_statistics_kernel[(linear_mv.shape[0],)](
        linear_mv, targets, peaks, log_totals, entropies, tops, scores.logprobs_mk[rows], K=targets.shape[1],
        WITH_ENTROPY=scores.entropy_m.shape[0] > 0, WITH_TOP1=scores.top1_m.shape[0] > 0,
        **_of_rows(linear_mv, operands),
    )  # fmt: skip


def row_gradients(linear_mv: Tensor, operands: Operands, scores: Scores, rows: slice, out_mv: Tensor) -> None:
    """Write d logprob / d linear, but for `Head.slope`, of rows with one target; `out_mv` may be `linear_mv`."""
    from finetooth_triton.row_kernels import row_gradient_kernel

    peaks = scores.peak_m[rows]
    row_gradient_kernel[(linear_mv.shape[0], -(-linear_mv.shape[1] // ROW_COLUMNS))](
        linear_mv, out_mv, operands.targets_mk[rows], peaks, scores.log_total_m[rows], torch.ones_like(peaks), K=1,
        stride_gm=out_mv.stride(0), **_of_rows(linear_mv, operands),
    )  # fmt: skip


def _of_rows(linear_mv: Tensor, operands: Operands) -> dict[str, Any]:
    """What both row kernels are told."""
    count, vocabulary = linear_mv.shape
    inner, outer = operands.factors
    return {
        "V": vocabulary, "rows_inner": count, "stride_outer": 0, "stride_inner": linear_mv.stride(0), "stride_v": 1,
        "inner": inner, "outer": outer, "HAS_SOFTCAP": operands.head.softcap is not None,
        "COLUMNS": ROW_COLUMNS, "num_warps": ROW_WARPS,
    }  # fmt: skip
