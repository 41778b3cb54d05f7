"""The named operations: what providers of kernels may compute, each with a plain reference and, where there is one,
torch's way.

A provider's function takes the arguments of the reference and gives the same numbers but for roundings. It may be
given tensors that it does not take (another dtype, other strides): then it computes them in another way, never wrongly.

| Operation | Computes | Result |
|---|---|---|
| `linear_logprob` | hidden states through the head to log-probabilities, entropy, likeliest id | full |
| `logits_statistics` | log-probabilities of chosen or likeliest ids, and the entropy, of given logits | full |
| `rms_norm` | rows by their root mean square, times a weight whose dtype it has; `residual`: and the rows | input |
| `rotary` | the first heads of rows, turned by angles | input |
| `norm_rotary` | query and key heads by their root mean square, times a weight, and turned; values pass | input |
| `gated_norm` | rows by their root mean square, times a weight and SiLU of a gate | input |
| `gated_mlp` | the activated gate times up | input |
| `low_rank_linear` | linear layers of the same rows, each with a low-rank addition, dropout and DoRA | input |
| `keyed_dropout` | numbers set to 0 by words of their row and column, see `finetooth_kernels.dropout` | input |
| `fp8_linear` | a linear layer whose products are in 8-bit floating point, see `finetooth_kernels.fp8` | input |
| `grouped_matmul` | rows times their group's matrix and an addition of it, see `finetooth_kernels.grouped` | input |
| `matmul_rounded_once` | sums of matrix products, without a graph | input |
| `accumulate` | a sum in a wider precision than its parts, in place, without a graph | full |
| `segment_attention` | causal attention over a stream of segments | input |
| `windowed_attention` | such attention with a window, a cap on scores or sinks | input |
| `cached_attention` | like a tensor, for heads of a size: attention of one query a row to a cache; or None | input |
| `packed_linear` | a weight, packed for products of few rows, without a graph; or None where it cannot be | input |
| `stream_decoder` | a model's layers over a stream of tokens without padding, see `finetooth_kernels.decoder` | input |

`linear_logprob` has two features: `expected`, that the gradients which a caller expects spare it a second look at the
logits (`finetooth_kernels.linear_logprob.foresees`), and `added`, that it takes the argument of that name, a low-rank
addition to the head; without it the head's own module computes. `low_rank_linear` has one: `multiply`, that it takes
the argument of that name, who makes its products; a provider without it multiplies in a way of its own. And so does
`packed_linear`: `runs`, that runs of rows add products of their own (`finetooth_kernels.runs`).
`cached_attention` and `packed_linear` return a function, or None where they cannot, and `stream_decoder` a decoder,
which is made of other operations of this list; the others return a result.

The provider `reference` computes all of these but `stream_decoder`: the definition of that is the model's own code,
which `backend.decoder: transformers` runs. The kit holds decoders against it by `reference_decoder`.

No run uses `integers`, which a provider may serve too: the functions of `finetooth_kernels.integers` look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from finetooth_kernels import (
    dropout,
    fp8,
    gated,
    grouped,
    linear_logprob,
    logits,
    low_rank_linear,
    mm,
    reference_decoder,
    references,
    rms_norm,
    rotary,
    segment_attention,
    sums,
)

__all__ = ["OPERATIONS", "Operation"]


@dataclass(frozen=True)
class Operation:
    """A named operation.

    Attributes:
        reference: computes it as its definition reads, in float64.
        torch: torch's way of it; None where a backend has its own.
        result: whose dtype the result has: `input`, or `full` precision.
        backward: gradients go through it.
        features: features that torch's implementation uses.
    """

    reference: Callable[..., Any]
    torch: Callable[..., Any] | None = None
    result: Literal["input", "full"] = "input"
    backward: bool = True
    features: frozenset[str] = frozenset()


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "linear_logprob": Operation(
            references.linear_logprob,
            linear_logprob.linear_logprob,
            "full",
            features=frozenset({"expected", "added"}),
        ),
        "logits_statistics": Operation(references.logits_statistics, logits.logits_statistics, "full"),
        "rms_norm": Operation(references.rms_norm, rms_norm.rms_norm),
        "rotary": Operation(references.rotary, rotary.rotate),
        "norm_rotary": Operation(references.norm_rotary, rotary.norm_rotary),
        "gated_norm": Operation(references.gated_norm),
        "gated_mlp": Operation(references.gated_mlp, gated.gated),
        "low_rank_linear": Operation(
            references.low_rank_linear, low_rank_linear.low_rank_linear, features=frozenset({"multiply"})
        ),
        "keyed_dropout": Operation(references.keyed_dropout, dropout.keyed_dropout),
        "fp8_linear": Operation(references.fp8_linear, fp8.fp8_linear),
        "grouped_matmul": Operation(references.grouped_matmul, grouped.grouped_matmul),
        "matmul_rounded_once": Operation(references.matmul_rounded_once, mm.mm, backward=False),
        "accumulate": Operation(references.accumulate, sums.accumulate, "full", backward=False),
        "segment_attention": Operation(references.segment_attention, segment_attention.segment_attention),
        "windowed_attention": Operation(references.windowed_attention, segment_attention.windowed_attention),
        "cached_attention": Operation(references.cached_attention, backward=False),
        "packed_linear": Operation(references.packed_linear, backward=False),
        "stream_decoder": Operation(reference_decoder.ReferenceDecoder),
    }
)
