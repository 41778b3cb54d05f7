"""`flash_attention` and `FlashMHA` against the definition in float64: values, gradients, masks and dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finetooth_kernels.flash import FlashMHA, flash_attention


def drawn(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_definition(q: Any, k: Any, v: Any, seen: Any) -> Any:
    """softmax(q k^T / sqrt(D)) v in float64, by torch's elementary operations, so that gradients can be compared."""
    k, v = (of.repeat_interleave(q.shape[1] // of.shape[1], 1) for of in (k, v))
    scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def visible(queries: int, keys: int, causal: bool) -> Any:
    if not causal:
        return torch.ones(queries, keys, dtype=torch.bool)
    return torch.arange(keys)[None] <= torch.arange(queries)[:, None] + keys - queries


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "key_heads"), [(127, 127, 2, 2), (128, 128, 4, 2), (129, 129, 2, 1), (1, 129, 2, 2),
                                                (127, 1025, 2, 1)],
)  # fmt: skip
def test_values_and_gradients(queries: int, keys: int, heads: int, key_heads: int, causal: bool) -> None:
    given = (drawn(2, heads, queries, 24), drawn(2, key_heads, keys, 24, seed=1), drawn(2, key_heads, keys, 24, seed=2))
    slopes = drawn(2, heads, queries, 24, seed=3)
    results = []
    for dtype in (torch.float32, torch.float64):
        leaves = [of.to(dtype, copy=True).requires_grad_() for of in given]
        if dtype == torch.float64:
            out = by_definition(*leaves, visible(queries, keys, causal))
        else:
            out = flash_attention(*leaves, causal=causal, dropout_p=0.0)
        out.backward(slopes.to(dtype))
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-4, atol=2e-5)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = k = torch.zeros(1, 64, 128, 128)  # every key weighs 1/128
    weights = flash_attention(q, k, torch.eye(128).expand(1, 64, 128, 128), causal=False) * 128
    kept = weights > 0
    assert (1 - kept.double().mean()).item() == pytest.approx(0.1, abs=0.002)  # 0.1 is what systems expect unsaid
    np.testing.assert_allclose(weights[kept].numpy(), 1 / 0.9, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_nothing_of_a_row(left: bool, causal: bool) -> None:
    torch.manual_seed(0)
    module = FlashMHA(48, 4).eval()
    lengths, longest = (129, 127, 1), 129
    x, mask = drawn(3, longest, 48), torch.zeros(3, longest, dtype=torch.int64)
    for row, length in enumerate(lengths):
        mask[row, longest - length :] = 1 if left else 0
        mask[row, :length] = mask[row, :length] if left else 1
    x.requires_grad_()
    out = module(x, mask, causal)
    for row in range(3):
        tokens = mask[row].bool()
        alone = module(x[row : row + 1, tokens], None, causal)[0]
        torch.testing.assert_close(out[row, tokens], alone, rtol=1e-5, atol=1e-6)
        assert torch.equal(out[row, ~tokens], module.out.bias.expand(int((~tokens).sum()), -1))
    out.square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and not x.grad[~mask.bool()].any()


def test_the_module_is_torchs_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = FlashMHA(48, 4, 0.0), torch.nn.MultiheadAttention(48, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x = drawn(2, 127, 48)
    wanted, _ = theirs(x, x, x, need_weights=False, attn_mask=~visible(127, 127, True))
    torch.testing.assert_close(ours(x), wanted, rtol=1e-5, atol=1e-6)


def test_only_training_drops() -> None:
    torch.manual_seed(0)
    module, x = FlashMHA(32, 2, dropout=0.5), drawn(1, 16, 32)
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda q: flash_attention(q[0], q, q), r"q: shape \(2, 5, 8\) is not \(batch, heads, length, head size\)"),
        (lambda q: flash_attention(q, q, q[:, :, 1:]), r"v: shape \(1, 2, 4, 8\) is not that of k"),
        (lambda q: flash_attention(q, q[..., 1:], q[..., 1:]), "k: shape .* does not fit that of q"),
        (lambda q: flash_attention(q, q, q, dropout_p=1.0), "dropout_p: 1.0 is not from 0 to below 1"),
        (lambda q: flash_attention(q, q[:, :, 1:], q[:, :, 1:]), "causal: the first of 5 queries would see none of 4"),
        (lambda q: FlashMHA(10, 3), "embed_dim: 10 is not a multiple of num_heads, 3"),
        (lambda q: FlashMHA(8, 2)(q[0], torch.ones(2, 4)), r"attention_mask: shape \(2, 4\) is not \(2, 5\)"),
    ],
)
def test_what_does_not_fit_is_named(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        call(drawn(1, 2, 5, 8))
