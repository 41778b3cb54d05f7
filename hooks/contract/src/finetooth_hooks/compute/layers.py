"""Facts of one decoder layer: how it mixes positions, its linear modules, its experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Experts:
    """Feed-forward blocks, as fused weights, of which a router picks some for each token.

    Attributes:
        count: experts of the layer.
        active: experts per token.
        width: inner width of each.
        shared: total inner width of the experts that compute every token; their modules are in
            `LayerFacts.feed_forward`.
        router: path of the router in the layer, `mlp.gate`; it has a score per expert.
        gated: an expert has three matrices, gate, up and down; else two.
        balanced: the routers support load-balancing and z-losses: the router's first result is its logits, and its
            probabilities are their softmax.
        clamped: gate and up are clamped, and 1 is added to up, before they are multiplied, as in gpt-oss.
    """

    count: int
    active: int
    width: int
    shared: int = 0
    router: str = "mlp.gate"
    gated: bool = True
    balanced: bool = False
    clamped: bool = False


LayerMixer = Literal["attention", "window", "linear", "state_space", "convolution", "none"]
"""How a layer mixes positions: full attention, attention with a sliding window, linear attention, a state-space model,
a short convolution, not at all. A layer with attention and a state space counts as attention."""


@dataclass(frozen=True)
class LayerFacts:
    """A family's facts of one decoder layer.

    Attributes:
        mixer: how positions are mixed.
        mixing, feed_forward: (inputs, outputs) of the linear modules, by their paths in the layer.
        heads, kv_heads, head_dim: of attention; 0 in layers without.
        value_dim: of a head's values, if it is not `head_dim`.
        window: of `window`: positions that each sees, including itself.
        state: numbers of a sequence's recurrent state in the layer.
        chunked: of a state computed in chunks: multiplications per position with its chunk, besides those with the
            state.
        ffn_size: inner width of a feed-forward block for every token, without shared experts.
        norms: over the hidden state; 0: unknown.
        wide_norms: their weights multiply in fp32.
        experts: routed ones; None: there are none.
    """

    mixer: LayerMixer
    mixing: Mapping[str, tuple[int, int]]
    feed_forward: Mapping[str, tuple[int, int]]
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    window: int = 0
    state: int = 0
    chunked: int = 0
    ffn_size: int = 0
    norms: int = 0
    wide_norms: bool = False
    experts: Experts | None = None
