"""Facts of one decoder layer: how it mixes positions, its linear modules, its experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Experts:
    """Feed-forward blocks of which a router picks some for each token, held as fused weights.

    Attributes:
        count: experts of the layer.
        active: how many of them compute a token.
        width: inner width of each.
        shared: inner width of the experts that compute every token, added up; their modules are among
            `LayerFacts.feed_forward`.
        router: path of the router in the layer, `mlp.gate`; it has a score for each expert.
        gated: an expert has three matrices, gate, up and down; else two.
        balanced: such models are trained with losses of their routers, load balancing and z-loss; the router is a
            module whose first result is its logits, and its probabilities are their softmax.
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
"""How a layer mixes positions: attention to all before, attention to the last few, linear attention, a state-space
model, a short convolution, not at all. A layer with attention and a state space is called attention."""


@dataclass(frozen=True)
class LayerFacts:
    """What a family says of one decoder layer.

    Attributes:
        mixer: how positions are mixed.
        mixing, feed_forward: (inputs, outputs) of the linear modules, by their paths in the layer.
        heads, kv_heads, head_dim: of attention; 0 in layers without.
        value_dim: of a head's values, where it is not `head_dim`.
        window: of `window`: how many positions each sees, itself included.
        state: numbers that a sequence keeps in the layer however long it is.
        chunked: of a state that is computed chunk by chunk: products of numbers that a position has with all positions
            of its chunk, in addition to those with the state.
        ffn_size: inner width of a feed-forward block that computes every token, shared experts left aside.
        norms: over the hidden state; 0: it is not said.
        wide_norms: their weights multiply in fp32.
        experts: those that a router picks; None: there are none.
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
