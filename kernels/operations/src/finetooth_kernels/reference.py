"""`linear_logprob` as its definition reads: whole logits, float64, torch's own derivatives. For tests and for doubt."""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_kernels.contract import (
    DEFAULT_CHUNK_BYTES,
    Availability,
    LinearLogprob,
    check_arguments,
    check_targets,
    refused_dtype,
    result_dtype,
)

__all__ = ["available", "linear_logprob_reference"]


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


def linear_logprob_reference(
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
) -> LinearLogprob:
    """What `finetooth_kernels.linear_logprob.linear_logprob` computes, argument for argument, without its thrift.

    Holds the whole (N, V) logits in float64 several times over; `expected` and `chunk_bytes` are
    checked and otherwise ignored. The
    results are rounded to float32 (float64 for float64 inputs) at the very end.

    Raises:
        ValueError: as `linear_logprob` does.
    """
    check_arguments(
        hidden_nd, weight_vd, targets, mask, bias_v,
        scale=scale, softcap=softcap, temperature=temperature, expected=expected, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    rows = torch.arange(hidden_nd.shape[0], device=hidden_nd.device) if mask is None else mask.nonzero().squeeze(1)
    targets_nk = targets if targets.dim() == 2 else targets.unsqueeze(1)
    targets_mk = targets_nk[rows]
    check_targets(targets_mk, rows, weight_vd.shape[0])

    logits_mv = hidden_nd[rows].double() @ weight_vd.double().t()
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
