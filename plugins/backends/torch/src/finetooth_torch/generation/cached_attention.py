"""Attention of one query per row to cached keys; the heads of a key-value group are one matrix product.

Letters: R rows, K key-value heads, G query heads for each of them, C cached columns, D numbers per head. Where n rows
share their beginning (P prompts, R = P n), the queries of all n multiply its keys in one product, and the softmax runs
over both parts together.
"""

from __future__ import annotations

import torch
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.segments import Looks
from torch import Tensor


def attend_cached(q_rkgd: Tensor, k_rkcd: Tensor, v_rkcd: Tensor, *, looks: Looks, mask: Tensor | None) -> Tensor:
    """Attention to each row's own cache.

    Args:
        looks: how scores become weights. The caller leaves out columns outside the window.
        mask: (R or 1, 1, 1, W), W up to C, added to the scores of the first W columns; -inf hides one.

    Returns:
        (R, K, G, D).
    """
    return _sum(_weights(_scores(q_rkgd, k_rkcd, looks, mask), looks), v_rkcd)


def attend_shared(
    q_rkgd: Tensor, k_rkcd: Tensor, v_rkcd: Tensor, k_pkwd: Tensor, v_pkwd: Tensor, *, looks: Looks,
    mask: Tensor | None, above_mask: Tensor | None,
) -> Tensor:  # fmt: skip
    """Attention to each row's own cache and to the W columns of its prompt, which n consecutive rows share.

    Args:
        mask: as in `attend_cached`.
        above_mask: (P, 1, 1, W), likewise for the prompt.

    Returns:
        (R, K, G, D).
    """
    prompts, width = k_pkwd.shape[0], k_pkwd.shape[2]
    above = _scores(_joined(q_rkgd, prompts), k_pkwd, looks, above_mask)
    own = _scores(q_rkgd, k_rkcd, looks, mask)
    weights = _weights(torch.cat([_parted(above, own.shape), own], -1), looks)
    from_above = _sum(_joined(weights[..., :width], prompts), v_pkwd)
    return _sum(weights[..., width:], v_rkcd) + _parted(from_above, q_rkgd.shape)


def _joined(x_rkgc: Tensor, prompts: int) -> Tensor:
    """(P n, K, G, C) to (P, K, n G, C)."""
    return torch.unflatten(x_rkgc, 0, (prompts, -1)).transpose(1, 2).flatten(2, 3)


def _parted(x_pkmc: Tensor, like: torch.Size) -> Tensor:
    """(P, K, n G, C) to (P n, K, G, C)."""
    return torch.unflatten(x_pkmc, 2, (-1, like[2])).transpose(1, 2).flatten(0, 1)


def _weights(scores_rkgc: Tensor, looks: Looks) -> Tensor:
    """The weights of values; sinks take their share of the softmax."""
    if looks.sinks is None:
        return scores_rkgc.softmax(-1)
    sinks = looks.sinks.detach().to(scores_rkgc.dtype).view(*scores_rkgc.shape[1:3], 1)
    return torch.cat([scores_rkgc, sinks.expand(*scores_rkgc.shape[:3], 1)], -1).softmax(-1)[..., :-1]


def _scores(q_rkgd: Tensor, k_rkcd: Tensor, looks: Looks, mask: Tensor | None) -> Tensor:
    """(R, K, G, C) scaled, capped and masked scores, in the precision of the softmax."""
    queries, keys = q_rkgd.flatten(0, 1), k_rkcd.flatten(0, 1)
    shape = (*q_rkgd.shape[:3], keys.shape[1])
    wide = result_dtype(keys.dtype)
    if keys.dtype == wide:
        scores = torch.bmm(queries, keys.transpose(1, 2)).view(shape).mul_(looks.scale)
    else:  # twice as fast in this order with oneDNN
        products = torch.unflatten(torch.bmm(keys, queries.transpose(1, 2)), 0, shape[:2]).transpose(2, 3)
        scores = products.to(wide, memory_format=torch.contiguous_format).mul_(looks.scale)
    if looks.softcap is not None:
        scores = scores.div_(looks.softcap).tanh_().mul_(looks.softcap)
    if mask is not None:
        scores[..., : mask.shape[-1]] += mask
    return scores


def _sum(weights_rkgc: Tensor, v_rkcd: Tensor) -> Tensor:
    """(R, K, G, D): weighted values."""
    weights = weights_rkgc.to(v_rkcd.dtype).flatten(0, 1)
    return torch.unflatten(torch.bmm(weights, v_rkcd.flatten(0, 1)), 0, v_rkcd.shape[:2])
