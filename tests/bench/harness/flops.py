"""How many floating-point operations a contender executes, by formula.

A multiplication with an addition counts two. Only matrix products and attention count: everything else together is
about a hundredth. The formulas are checked against torch's own counter in test_bench_flops.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like model. `queries` and `keys` are widths: heads times the size of one."""

    layers: int
    hidden: int
    queries: int
    keys: int
    ffn: int
    vocabulary: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config in transformers' shape."""
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["num_attention_heads"] * size,
            config["num_key_value_heads"] * size,
            config["intermediate_size"],
            config["vocab_size"],
        )

    @property
    def linear(self) -> int:
        """Weights of all linear layers of the decoder layers."""
        attention = self.hidden * (2 * self.queries + 2 * self.keys)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    def low_rank(self, rank: int) -> int:
        """Weights of a LoRA on every linear layer."""
        inputs_and_outputs = (
            2 * (self.hidden + self.queries) + 2 * (self.hidden + self.keys) + 3 * (self.hidden + self.ffn)
        )
        return self.layers * rank * inputs_and_outputs


@dataclass(frozen=True)
class Work:
    """What is computed.

    Attributes:
        positions: that go through the decoder layers, padding included.
        head_positions: whose logits are computed.
        pairs: query positions times key positions, summed over sequences; a causal kernel that leaves out the upper
            half computes half of them.
    """

    positions: int
    head_positions: int
    pairs: float


def forward(shape: Shape, work: Work, rank: int = 0) -> float:
    """FLOPs of a forward; with `rank` a LoRA goes along every linear layer."""
    return _layers(shape, work, rank) + 2.0 * shape.hidden * shape.vocabulary * work.head_positions


def training(shape: Shape, work: Work, *, rank: int = 0, recompute: bool = False) -> float:
    """FLOPs of forward and backward.

    The gradient of a matrix product costs one product for its input and one for its weight; the weights of a frozen
    base get none.

    Args:
        rank: of a LoRA on a frozen base; 0 trains every weight.
        recompute: the decoder layers are computed again in the backward (gradient checkpointing).
    """
    linear = 2.0 * shape.linear * work.positions
    low_rank = 2.0 * shape.low_rank(rank) * work.positions if rank else 0.0
    head = 2.0 * shape.hidden * shape.vocabulary * work.head_positions
    weights = low_rank if rank else linear + head
    inputs = linear + low_rank + head + 2 * _attention(shape, work)
    # recomputing ends with the last tensor that the backward needs: the product after it is not done again
    last = 2.0 * shape.layers * shape.hidden * (rank or shape.ffn) * work.positions
    again = _layers(shape, work, rank) - last if recompute else 0.0
    return forward(shape, work, rank) + inputs + weights + again


def _layers(shape: Shape, work: Work, rank: int) -> float:
    weights = shape.linear + (shape.low_rank(rank) if rank else 0)
    return 2.0 * weights * work.positions + _attention(shape, work)


def _attention(shape: Shape, work: Work) -> float:
    """Scores and weighted values."""
    return 4.0 * shape.layers * shape.queries * work.pairs
