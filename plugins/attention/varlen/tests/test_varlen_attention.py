"""The contract, with values and gradients against the float64 reference where this machine can compute it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_kit import parametrize_with_checks
from finetooth_varlen.attention import build
from torch import Tensor


@parametrize_with_checks("finetooth_varlen.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize("repeats", [True, False])
def test_shared_heads_are_repeated_where_torch_does_not(monkeypatch: pytest.MonkeyPatch, repeats: bool) -> None:
    """Against softmax in float64; torch 2.11 has no `enable_gqa`."""

    def plain(
        q: Tensor, k: Tensor, v: Tensor, ends: Tensor, ends_k: Tensor, most: int, most_k: int, *,
        scale: float, window_size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        assert q.shape == k.shape == v.shape and ends.tolist() == ends_k.tolist() == [0, 4]
        scores = (scale * torch.einsum("qhd,khd->hqk", q, k)).masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf)
        return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)

    def shared(
        q: Tensor, k: Tensor, v: Tensor, *rest: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool
    ) -> Tensor:
        assert enable_gqa
        return plain(q, *(x.repeat_interleave(2, 1) for x in (k, v)), *rest, scale=scale, window_size=window_size)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", shared if repeats else plain)
    sizes = (4, 8), (2, 8), (2, 5)  # values may be smaller, as DeepSeek's
    q, k, v = (torch.randn(1, heads, 4, size, dtype=torch.float64) for heads, size in sizes)
    got = build()(q, k, v, scale=0.3, lengths=((4,),), causal=True, window=None, softcap=None, sinks=None)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    assert torch.allclose(got, exact, atol=1e-12)


def test_a_torch_whose_function_has_no_window_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int) -> Any: ...

    assert callable(build())
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", early)
    with pytest.raises(PlanError, match="has no scale and window_size") as refused:
        build()
    assert refused.value.action == "set it to auto"
