"""Decoder layers of the usual kind (`finetooth_hooks.protocols.Block`), computed over a stream without padding.

The weights stay where they are, in the modules of the transformers model, so adapters, exports and optimizers see
nothing new; what is computed here instead of there is the way through them. The residual stream, to which every layer
adds, is float32 also where layers compute in half precision: its roundings would add up. Linear layers that read the
same rows are one matrix product, low-rank additions included; what each step keeps for backward is listed in
`finetooth_kernels`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from finetooth_hooks.protocols import ModelFacts
from finetooth_kernels.contract import result_dtype
from finetooth_kernels.decoder import ByRows, FindLowRank, LayerOperations, Stream
from finetooth_kernels.gated import activate
from finetooth_kernels.low_rank_linear import Again
from finetooth_kernels.memory import Arena
from finetooth_kernels.segments import Looks, longest
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from finetooth_native.linear_groups import Group

__all__ = ["Group", "StreamDecoder"]


class _Layer:
    """One decoder layer: its groups, and its norms by module.

    Args:
        number: of the layer among those that `facts` and its block say something of.
        angle: which of the decoder's angles turn it; None: it is not turned.
    """

    def __init__(
        self, module: nn.Module, facts: ModelFacts, number: int, low_rank: FindLowRank, compute: LayerOperations,
        *, angle: int | None, recomputed: bool,
    ) -> None:  # fmt: skip
        block = facts.block
        assert block is not None

        def find(path: str) -> nn.Module | None:
            return module.get_submodule(path) if path else None

        def group(*paths: str) -> Group:
            modules = [module.get_submodule(path) for path in paths if path]
            return Group(modules, low_rank, compute, recomputed=recomputed)

        self._facts, self._block, self._number, self._angle = facts, block, number, angle
        self._rms_norm, self._rotary, self._norm_rotary = compute.rms_norm, compute.rotary, compute.norm_rotary
        self._activate: Callable[..., Tensor] = partial(compute.gated_mlp, activation=block.activation)
        if not block.gate:
            self._activate = partial(activate, activation=block.activation)
        self.attention_norm, self.ffn_norm = find(block.attention_norm), find(block.ffn_norm)
        self.attention_after, self.ffn_after = find(block.attention_after), find(block.ffn_after)
        self.query_norm, self.key_norm = find(block.query_norm), find(block.key_norm)
        self.qkv, self.output = group(block.query, block.key, block.value), group(block.output)
        self.feed_forward = find(block.feed_forward)
        if self.feed_forward is None:
            self.gate_up, self.down = group(block.gate, block.up), group(block.down)
        self._module = module

    @property
    def _turns_normed(self) -> bool:
        """Heads are normalised each by itself, and turned half against half."""
        norms: Any = self.query_norm, self.key_norm
        if None in norms or self._angle is None or self._block.interleaved or self._block.norms == "own":
            return False
        return all(norm.weight.shape == (self._facts.head_dim,) for norm in norms)

    @property
    def looks(self) -> Looks:
        """See `finetooth_kernels.decoder.Layer`."""
        facts, block = self._facts, self._block
        scale = facts.head_dim**-0.5 if block.attention_scale is None else block.attention_scale
        window = facts.per_layer[self._number].window if facts.per_layer else 0
        sinks = self._module.get_parameter(block.sinks) if facts.attention.sinks else None
        return Looks(scale, window, facts.attention.softcap, sinks)

    def prepared(self, prepare: Callable[[Group], Any]) -> _Layer:
        """This layer with what `prepare` makes of its groups; it is called like them."""
        layer = copy.copy(self)
        layer.qkv, layer.output = prepare(self.qkv), prepare(self.output)
        if self.feed_forward is None:
            layer.gate_up, layer.down = prepare(self.gate_up), prepare(self.down)
        return layer

    def project(
        self, h_nd: Tensor, cos_nr: Tensor, sin_nr: Tensor, arena: Arena | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and (N, H + 2 K, head_dim): queries and keys, rotated, and values."""
        heads, kv_heads, size = self._facts.heads, self._facts.kv_heads, self._facts.head_dim
        copied = self.query_norm is None and self._angle is not None
        h_nd, rows = self._normed(self.qkv, self.attention_norm, h_nd, arena, passing=copied)
        rows = rows.view(-1, heads + 2 * kv_heads, size)
        if self._angle is not None and cos_nr.dim() == 3:
            cos_nr, sin_nr = cos_nr[self._angle], sin_nr[self._angle]
        if self._turns_normed:
            weights: Any = [self._weight(of.weight) for of in (self.query_norm, self.key_norm) if of is not None]
            return h_nd, self._norm_rotary(rows, *weights, cos_nr, sin_nr, heads, self._block.eps, arena)
        if self.query_norm is not None and self.key_norm is not None:
            q, k, v = rows.split([heads, kv_heads, kv_heads], 1)  # type: ignore[no-untyped-call]
            rows = torch.cat([self._of_heads(self.query_norm, q, arena), self._of_heads(self.key_norm, k, arena), v], 1)
        if self._angle is None:
            return h_nd, rows
        if self._block.interleaved:
            rows = _halves(rows, heads + kv_heads, 2 * cos_nr.shape[-1])
        return h_nd, self._rotary(rows, cos_nr, sin_nr, heads + kv_heads, arena)

    def feed(self, h_nd: Tensor, attended_nd: Tensor, arena: Arena | None = None) -> Tensor:
        """The residual stream after what comes behind attention: its output projection and the feed-forward block."""
        read_nd, h_nd = h_nd, self._onto(h_nd, self.output, self.attention_after, attended_nd, None, arena)
        read_nd = read_nd if self._block.parallel else h_nd
        if self.feed_forward is not None:
            fed: Any = self.feed_forward(self._rows(self.ffn_norm, read_nd, arena)[1].unsqueeze(0))
            return self._added(h_nd, (fed[0] if isinstance(fed, tuple) else fed).squeeze(0), self.ffn_after, arena)
        passed_nd, gate_up = self._normed(self.gate_up, self.ffn_norm, read_nd, arena)
        h_nd = h_nd if self._block.parallel else passed_nd
        again = self._activate, (gate_up,)
        return self._onto(h_nd, self.down, self.ffn_after, self._activate(gate_up), again, arena)

    def _onto(
        self, h_nd: Tensor, group: Group, after: nn.Module | None, x_nd: Tensor, again: Again | None,
        arena: Arena | None,
    ) -> Tensor:  # fmt: skip
        """The residual stream with what the group makes of its input."""
        if after is None and self._block.residual_scale == 1.0:
            return group(x_nd, again, h_nd, arena)
        return self._added(h_nd, group(x_nd, again, arena=arena), after, arena)

    def _added(self, h_nd: Tensor, y_nd: Tensor, after: nn.Module | None, arena: Arena | None) -> Tensor:
        y_nd = y_nd if after is None else self.norm(after, y_nd, arena)
        scale = self._block.residual_scale
        return h_nd + (y_nd if scale == 1.0 else scale * y_nd)

    def _normed(
        self, group: Group, norm: nn.Module | None, h_nd: Tensor, arena: Arena | None, *, passing: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and the group on its normalised rows, which backward makes again."""
        h_nd, normed_nd = self._rows(norm, h_nd, arena)
        weight: Any = getattr(norm, "weight", None)  # a module's attributes may be anything
        sources = (h_nd,) if weight is None else (h_nd, weight)
        return h_nd, group(normed_nd, (partial(self._again, norm), sources), arena=arena, passing=passing)

    def _again(self, norm: nn.Module | None, h_nd: Tensor, weight: Tensor | None = None) -> Tensor:
        return self._rows(norm, h_nd, None, weight)[1]

    def _rows(
        self, norm: nn.Module | None, h_nd: Tensor, arena: Arena | None, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The residual stream, and its normalised rows in the precision of the layers.

        Args:
            weight: of the norm; None: as it stands in it.
        """
        if norm is None or self._block.norms == "own":
            like = self.attention_after if norm is None else norm  # after it, if not before it, there is one
            return h_nd, (h_nd if norm is None else _own(norm, h_nd)).to(_dtype(like))
        h_nd, normed_nd = self._rms_norm(
            h_nd, self._weight(norm.weight if weight is None else weight), self._block.eps, arena, residual=True
        )
        return h_nd, normed_nd.to(_dtype(norm))

    def _weight(self, weight: Any) -> Tensor:
        """What a norm multiplies with."""
        multiplied: Tensor = weight
        return multiplied if self._block.norms == "rms" else 1.0 + multiplied.to(result_dtype(multiplied.dtype))

    def _of_heads(self, norm: nn.Module, rows_nhd: Tensor, arena: Arena | None) -> Tensor:
        weight: Any = norm.weight
        together = weight.dim() == 1 and weight.shape[0] != rows_nhd.shape[-1]
        return self.norm(norm, rows_nhd.flatten(1) if together else rows_nhd, arena).view(rows_nhd.shape)

    def norm(self, module: nn.Module, x: Tensor, arena: Arena | None = None) -> Tensor:
        """Rows, normalised, in the precision of the layers."""
        if self._block.norms == "own":
            return _own(module, x).to(_dtype(module))
        weight = self._weight(module.weight)
        x = x.to(weight.dtype) if weight.dtype.itemsize > x.dtype.itemsize else x
        normed: Tensor = self._rms_norm(x, weight, self._block.eps, arena)
        return normed.to(_dtype(module))


def _dtype(norm: Any) -> torch.dtype:
    """The precision of the layers, which is that of their norms' weights."""
    dtype: torch.dtype = norm.weight.dtype
    return dtype


def _own(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm's module does, in a precision that may be wider than its weight's."""
    if isinstance(norm, nn.LayerNorm):
        weight, bias = (None if p is None else p.to(x.dtype) for p in (norm.weight, norm.bias))
        return nn.functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)
    normed: Tensor = norm(x)
    return normed


def _halves(rows_nhd: Tensor, heads: int, turned: int) -> Tensor:
    """The first heads with the numbers that turn together half a rotation apart, not next to each other. Products of
    queries and keys stay what they are."""
    pairs = torch.unflatten(rows_nhd[:, :heads, :turned], -1, (-1, 2)).transpose(-1, -2).flatten(-2)
    first = torch.cat([pairs, rows_nhd[:, :heads, turned:]], -1)
    return torch.cat([first, rows_nhd[:, heads:]], 1)


def _once(angles_nr: Tensor) -> slice:
    """Where each angle stands once in what a model's module gives, which may repeat them: half after half, or pair by
    pair."""
    width = angles_nr.shape[-1]
    first, second = angles_nr.split([width - width // 2, width // 2], -1)  # type: ignore[no-untyped-call]
    if torch.equal(first, second):
        return slice(width // 2)
    return slice(0, None, 2) if torch.equal(angles_nr[:, ::2], angles_nr[:, 1::2]) else slice(None)


class StreamDecoder:
    """See `finetooth_kernels.decoder.Decoder`, and `MakeDecoder` there for the arguments."""

    def __init__(
        self,
        body: nn.Module,
        facts: ModelFacts,
        low_rank: FindLowRank,
        *,
        checkpointing: bool,
        compute: LayerOperations,
    ) -> None:
        self._attend, self._attend_windowed, block = compute.segment_attention, compute.windowed_attention, facts.block
        assert block is not None
        self._facts, self._block, self._checkpointing = facts, block, checkpointing
        self._embedding, self._rotary = body.get_submodule(block.embedding), body.get_submodule(block.rotary)
        self._final_norm = body.get_submodule(block.final_norm)
        layers: Any = body.get_submodule(facts.layer_path.removeprefix(f"{facts.body}."))
        rotations = block.rotations or ("",) * len(layers)
        self._kinds = tuple(dict.fromkeys(kind for kind in rotations if kind is not None)) or ("",)
        self._once: slice | None = None
        self.layers = [
            _Layer(
                layer, facts, number, low_rank, compute, recomputed=checkpointing,
                angle=None if kind is None else self._kinds.index(kind),
            )
            for number, (layer, kind) in enumerate(zip(layers, rotations, strict=True))
        ]  # fmt: skip

    def lay_out(self) -> None:
        """Lay the weights of each group side by side now, before activations fill the gaps that this leaves."""
        for layer in self.layers:
            layer.qkv.lay_out()
            if layer.feed_forward is None:
                layer.gate_up.lay_out()

    def hidden(
        self,
        stream: Stream,
        wanted: Tensor | None = None,
        *,
        layers: Sequence[_Layer] | None = None,
        keep: Callable[[int, Tensor], None] | None = None,
        between: Callable[[int, Tensor], None] | None = None,
        by_rows: ByRows | None = None,
        whole: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """States after the final norm, (N, D); with `wanted` (M,), (M, D) for those positions only.

        Args:
            layers: instead of the decoder's own, these, prepared from them.
            keep: is told each layer's number and its rotated queries and keys, and values, (N, H + 2 K, head_dim).
            between: gets each layer's number, from 0, and the residual stream (N, D) that it reads.
            by_rows: computes what comes behind attention; None: for all positions at once.
            whole: see `finetooth_kernels.decoder.Decoder`.
        """
        layers = self.layers if layers is None else layers
        keeps = torch.is_grad_enabled() and not self._checkpointing
        arena = Arena() if keeps and stream.tokens.device.type == "cpu" else None
        h_nd = self.embedded(stream.tokens)
        cos_nr, sin_nr = self.angles(stream.positions)
        for i, layer in enumerate(layers):
            if between is not None:
                between(i, h_nd)
            compute = partial(
                self._layer,
                layer,
                stream=stream,
                whole=None if whole is None else partial(whole, i),
                wanted=wanted if i == len(layers) - 1 else None,
                keep=None if keep is None else partial(keep, i),
                arena=arena,
                by_rows=by_rows,
            )
            if self._checkpointing and torch.is_grad_enabled():
                h_nd = checkpoint(compute, h_nd, cos_nr, sin_nr, use_reentrant=False)
            else:
                h_nd = compute(h_nd, cos_nr, sin_nr)
        return self.normed(h_nd)

    def normed(self, h_nd: Tensor) -> Tensor:
        """After the last layer."""
        return self.layers[-1].norm(self._final_norm, h_nd)

    def embedded(self, tokens_n: Tensor) -> Tensor:
        """(N, D), where the residual stream begins."""
        embedded: Tensor = self._embedding(tokens_n)
        embedded, scale = embedded.to(result_dtype(embedded.dtype)), self._block.embedding_scale
        return embedded if scale == 1.0 else embedded * scale

    def angles(self, positions_n: Tensor) -> tuple[Tensor, Tensor]:
        """See `finetooth_kernels.decoder.Decoder`."""
        like = torch.empty(0, dtype=torch.float32, device=positions_n.device)

        def turned(positions: Tensor, kind: str) -> Any:
            return self._rotary(like, positions.unsqueeze(0), *([kind] if kind else []))

        if self._once is None:
            self._once = _once(turned(torch.arange(1, 3, device=like.device), self._kinds[0])[1][0])
        both = [[x[0, :, self._once] for x in turned(positions_n, kind)] for kind in self._kinds]
        cos, sin = (of[0].contiguous() if len(of) == 1 else torch.stack(of) for of in zip(*both, strict=True))
        return cos, sin

    def _layer(
        self, layer: _Layer, h_nd: Tensor, cos_nr: Tensor, sin_nr: Tensor, *, stream: Stream,
        wanted: Tensor | None, keep: Callable[[Tensor], None] | None, arena: Arena | None,
        by_rows: ByRows | None, whole: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:  # fmt: skip
        facts, segments = self._facts, stream.segments
        h_nd, qkv = layer.project(h_nd, cos_nr, sin_nr, arena)
        qkv = qkv if whole is None else whole(qkv)
        if keep is not None:
            keep(qkv)
        looks, heads = layer.looks, {"heads": facts.heads, "kv_heads": facts.kv_heads}
        if looks.usual(longest(segments) if looks.window else 0):
            attended = self._attend(qkv, segments, scale=looks.scale, arena=arena, **heads).flatten(1)
        else:
            attended = self._attend_windowed(qkv, segments, looks, **heads).flatten(1)
        if stream.rows is not None:
            attended = attended.index_select(0, stream.rows)
        if wanted is not None:  # behind the last attention a position needs no other
            attended, h_nd = attended.index_select(0, wanted), h_nd.index_select(0, wanted)
        return layer.feed(h_nd, attended, arena) if by_rows is None else by_rows(layer.feed, h_nd, attended)
