"""Attention without its matrix of weights, as a function and as a module (Dao et al., 2022, arXiv:2205.14135).

    softmax(q k^T / sqrt(D)) v

Torch's `scaled_dot_product_attention` picks the kernel: a flash kernel on CUDA and ROCm devices that have one, and on a
CPU without dropout. Elsewhere, and with a mask of single positions, it may make the weights of all pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FlashMHA", "flash_attention"]


def flash_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = True, dropout_p: float = 0.1) -> Tensor:
    """Attention of each query to the keys.

    Args:
        q: (batch, heads, N, D).
        k, v: (batch, key heads, M, D). Several query heads may share a key head.
        causal: the last query sees all keys, each one before it one key less.
        dropout_p: share of the weights that is set to zero, drawn again in each call; 0 to evaluate.

    Returns:
        (batch, heads, N, D) in the dtype of `q`.

    Raises:
        ValueError: naming the argument, for shapes that do not fit, or more queries than keys where `causal`.
    """
    for name, of in (("q", q), ("k", k), ("v", v)):
        if of.dim() != 4:
            raise ValueError(f"{name}: shape {tuple(of.shape)} is not (batch, heads, length, head size)")
    if k.shape != v.shape:
        raise ValueError(f"v: shape {tuple(v.shape)} is not that of k, {tuple(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3] or q.shape[1] % k.shape[1]:
        raise ValueError(f"k: shape {tuple(k.shape)} does not fit that of q, {tuple(q.shape)}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"dropout_p: {dropout_p} is not from 0 to below 1")
    queries, keys = q.shape[2], k.shape[2]
    if causal and queries > keys:
        raise ValueError(f"causal: the first of {queries} queries would see none of {keys} keys")
    square = queries == keys
    seen = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril_(keys - queries) if not square else None
    return functional.scaled_dot_product_attention(
        q, k, v, seen if causal else None, dropout_p, is_causal=causal and square, enable_gqa=q.shape[1] != k.shape[1]
    )


class FlashMHA(nn.Module):
    """Multi-head attention of a sequence to itself (Vaswani et al., 2017, arXiv:1706.03762, section 3.2).

    Args:
        embed_dim: of a row, a multiple of `num_heads`.
        num_heads: how many heads share it.
        dropout: share of the weights that is set to zero in training.

    Raises:
        ValueError: the heads do not share the row evenly.
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim: {embed_dim} is not a multiple of num_heads, {num_heads}")
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.out = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, causal: bool = True) -> Tensor:
        """Attend.

        Args:
            x: (batch, N, embed_dim).
            attention_mask: (batch, N), true or 1 where a row is a token and false or 0 where it is padding, which
                nothing attends to; None: all are tokens. With a mask the weights of all pairs may be made.
            causal: a row sees itself and those before it.

        Returns:
            (batch, N, embed_dim). Padding attends to nothing: its rows are the output layer's bias.

        Raises:
            ValueError: the mask has another shape.
        """
        batch, length, width = x.shape
        if attention_mask is not None and attention_mask.shape != (batch, length):
            raise ValueError(f"attention_mask: shape {tuple(attention_mask.shape)} is not {(batch, length)}")
        q, k, v = self.qkv(x).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        if attention_mask is None:
            heads = flash_attention(q, k, v, causal, dropout)
        else:
            tokens = attention_mask.bool()
            pairs = torch.ones(length, length, dtype=torch.bool, device=x.device)
            seen = tokens[:, None, None, :] & (pairs.tril() if causal else pairs)
            seen = seen | torch.eye(length, dtype=torch.bool, device=x.device)  # padding sees itself: no row of NaN
            heads = functional.scaled_dot_product_attention(q, k, v, seen, dropout)
            heads = heads.masked_fill(~tokens[:, None, :, None], 0)
        result: Tensor = self.out(heads.transpose(1, 2).reshape(batch, length, width))
        return result
