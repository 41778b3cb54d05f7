"""The operation `stream_decoder` as its definition reads, by the model's own code; and a model to try it with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from finetooth_hooks.protocols import Block, Head, ModelFacts
from torch import Tensor, nn

from finetooth_kernels import gated, low_rank_linear, rms_norm, rotary, segment_attention
from finetooth_kernels.decoder import FindLowRank, LayerOperations, Stream
from finetooth_kernels.segments import paths

__all__ = ["FACTS", "OPERATIONS", "ReferenceDecoder", "TrialBody"]


class ReferenceDecoder:
    """Each segment's states are those at the end of its path, read as a sequence of its own.

    Has `hidden` alone of `finetooth_kernels.decoder.Decoder`, without `layers` and `keep`: it cannot be taken apart.
    """

    def __init__(
        self, body: nn.Module, facts: ModelFacts, low_rank: FindLowRank, *, checkpointing: bool,
        compute: LayerOperations,
    ) -> None:  # fmt: skip
        del facts, low_rank, checkpointing, compute
        self._body = body

    def hidden(self, stream: Stream, wanted: Tensor | None = None) -> Tensor:
        """States after the final norm; see `finetooth_kernels.decoder.Decoder`."""
        rows = []
        for path in paths(stream.segments):
            places = torch.cat([torch.arange(segment.start, segment.stop) for segment in path])
            inputs = {"input_ids": stream.tokens[places][None], "position_ids": stream.positions[places][None]}
            read = self._body(**inputs, use_cache=False).last_hidden_state[0]
            rows.append(read[len(places) - (path[-1].stop - path[-1].start) :])
        states = torch.cat(rows)
        return states if wanted is None else states[wanted]


OPERATIONS = SimpleNamespace(
    rms_norm=rms_norm.rms_norm, rotary=rotary.rotate, norm_rotary=rotary.norm_rotary, gated_mlp=gated.gated,
    low_rank_linear=low_rank_linear.low_rank_linear, segment_attention=segment_attention.segment_attention,
    windowed_attention=segment_attention.windowed_attention,
)  # fmt: skip
"""Torch's implementations of the parts of layers."""

HEADS, KV_HEADS, SIZE, WIDTH, BETWEEN, EPS = 4, 2, 16, 24, 40, 1e-5

FACTS = ModelFacts(
    hidden_size=WIDTH, layers=2, heads=HEADS, kv_heads=KV_HEADS, head_dim=SIZE, ffn_size=BETWEEN, vocab_size=64,
    max_positions=64, layer_path="model.layers", body="model", head=Head(), attention_targets=(), linear_targets=(),
    renderer="plain",
    block=Block(
        eps=EPS, embedding="embedding", rotary="rotary", final_norm="norm", attention_norm="before", ffn_norm="between",
        query="query", key="key", value="value", output="output", gate="gate", up="up", down="down",
    ),
)  # fmt: skip
"""Facts of a `TrialBody`."""


class TrialBody(nn.Module):
    """A small model of the usual kind, for one sequence at a time.

    Args:
        states: (V, WIDTH), the embedding, which gradients reach.
        generator: draws the weights.
        dtype: that weights can be stored in; they have that of the states.
    """

    def __init__(self, states: Tensor, generator: torch.Generator, dtype: torch.dtype) -> None:
        super().__init__()
        self.embedding = _Embedding(states)
        self.rotary = _Rotary()
        self.layers = nn.ModuleList([_Layer(generator) for _ in range(FACTS.layers)])
        self.norm = _Norm(generator)
        self.requires_grad_(False).to(dtype).to(states.device, states.dtype)

    def forward(self, input_ids: Tensor, position_ids: Tensor, use_cache: bool) -> Any:
        del use_cache
        h = self.embedding(input_ids[0])
        cos, sin = (x[0].to(h.dtype).unsqueeze(1) for x in self.rotary(h.float(), position_ids))
        for layer in self.layers:
            h = layer(h, cos, sin)
        return SimpleNamespace(last_hidden_state=self.norm(h)[None])


class _Embedding(nn.Module):
    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.__dict__["states"] = states  # a part of the caller's graph, no parameter

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.__dict__["states"]
        return states[tokens]


class _Rotary(nn.Module):
    def forward(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (1, N, SIZE), in the dtype of `like`."""
        slower = torch.linspace(1.0, 0.05, SIZE // 2, device=positions.device)
        angles = (positions.unsqueeze(-1) * slower).repeat(1, 1, 2)
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


class _Norm(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 + torch.rand(WIDTH, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * self.weight


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    module = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device="cpu")
    module.weight.data.normal_(std=inputs**-0.5, generator=generator)
    return module


class _Layer(nn.Module):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.before, self.between = _Norm(generator), _Norm(generator)
        self.query, self.output = (
            _linear(*sizes, generator) for sizes in ((WIDTH, HEADS * SIZE), (HEADS * SIZE, WIDTH))
        )
        self.key, self.value = (_linear(WIDTH, KV_HEADS * SIZE, generator) for _ in range(2))
        self.gate, self.up = (_linear(WIDTH, BETWEEN, generator) for _ in range(2))
        self.down = _linear(BETWEEN, WIDTH, generator)

    def forward(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        n, count = self.before(h), len(h)
        q, k = (_turned(x(n).view(count, -1, SIZE), cos, sin) for x in (self.query, self.key))
        k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, self.value(n).view(count, -1, SIZE)))
        later = torch.ones(count, count, dtype=torch.bool, device=h.device).triu(1)
        scores = (torch.einsum("nhd,mhd->hnm", q, k) * SIZE**-0.5).masked_fill(later, -torch.inf)
        h = h + self.output(torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v).flatten(1))
        n = self.between(h)
        fed: Tensor = self.down(nn.functional.silu(self.gate(n)) * self.up(n))
        return h + fed


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin
