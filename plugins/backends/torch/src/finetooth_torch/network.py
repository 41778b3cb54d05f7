"""The engine's model: from a rectangle of tokens to the outputs that a loss declared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from finetooth_hooks import OutputName, PlanError
from finetooth_hooks.protocols import Adapter, ModelFacts, Processor, ShardedModel, Stages
from finetooth_kernels.contract import chunk_bytes_on
from finetooth_steps.outputs import is_whole
from torch import Tensor, nn

from finetooth_torch.attention.slices import Slices
from finetooth_torch.compiled_layers import compile_layers
from finetooth_torch.compute import TORCH, Compute
from finetooth_torch.decoder.agreement import check_decoder, check_head
from finetooth_torch.decoder.bodies import Body, StreamBody, TransformersBody
from finetooth_torch.decoder.embedded_images import seeing
from finetooth_torch.decoder.pieces import Pieces
from finetooth_torch.draws import Draws
from finetooth_torch.embedding_noise import EmbeddingNoise
from finetooth_torch.heads.head import Projection
from finetooth_torch.heads.repetition import Repetition
from finetooth_torch.heads.scalar_head import AddedHead
from finetooth_torch.layout.rectangles import Rectangle, counted_cells, on_host
from finetooth_torch.layout.shared_rows import Rows, check_causal, check_slices, find_rows
from finetooth_torch.layout.state_reset import computed_again
from finetooth_torch.planning.attention import AttentionChoice
from finetooth_torch.planning.compilation import REGIONAL, Compile
from finetooth_torch.planning.flops import Computed, Execution, ModelCost, cost_of, count
from finetooth_torch.planning.routers import RouterCoefficients
from finetooth_torch.precision import result_dtype
from finetooth_torch.roles.frozen_copy import FrozenCopy
from finetooth_torch.router_losses import RouterLosses
from finetooth_torch.staged.body import StagedBody, StagedLayers

OUTPUTS = ("logprobs", "entropy", "hidden", "logits")
HEAD_OUTPUTS = ("values", "scores")
"""What a scalar head adds."""
ROLES = ("policy", "reference")


class Network:
    """A base model with its adapter.

    Args:
        base: the transformers model; the family's module paths are paths in it.
        model: what the adapter returned. It changes the modules of `base` in place, so both compute the same.
        can_disable: the adapter can be switched off.
        checkpointing: recompute activations in backward.
        stream: compute the layers with the stream decoder; the family's facts have a block.
        packing: whether examples may share rows if the model's own code computes the layers; None: if it can.
        processor: of images, sounds and videos, if the model has towers that read them.
        scalar: the head for `values` and `scores`, if there is one.
        attention: of the model's own code.
        compute: the operations.
        strict: refuse random draws without an example's key; see `Draws`.
        slices: this rank's share of the positions of each row; None: all.
        pieces: tokens for which a feed-forward block is computed at once; 0: all.

    Attributes:
        draws: random numbers of dropout and noise.
        rows: how examples share rows, and whether segments can be kept apart.
        routers: losses of a mixture's routers; None: the recipe has none.
        holders: computes the roles other than the policy and its base.
        staged: the body, if this rank has only some layers; None: it has all.

    Raises:
        PlanError: the stream decoder, or the head as the family describes it, does not compute the same as the model;
            or `packing` is true and the model cannot pack.
    """

    def __init__(
        self, base: nn.Module, model: nn.Module, facts: ModelFacts, adapter: Adapter, *, can_disable: bool,
        checkpointing: bool, stream: bool, packing: bool | None = None,
        processor: Callable[[], Processor] | None = None, scalar: AddedHead | None = None,
        attention: AttentionChoice, compute: Compute = TORCH, strict: bool = False, slices: Slices | None = None,
        pieces: int = 0,
    ) -> None:  # fmt: skip
        self.compute = compute
        self.routers: RouterLosses | None = None
        device = next(base.parameters()).device
        self.draws = Draws(device, strict=strict, dropout=compute.keyed_dropout)
        self.base, self.model, self.facts = base, model, facts
        self.scalar = scalar
        self.adapter, self._can_disable = adapter, can_disable
        self.config: Any = base.config
        module = base.get_submodule(facts.body)
        self.reads_media = bool(facts.towers) and processor is not None
        towers = tuple(base.get_submodule(path) for path in facts.towers)
        self._fused = attention.fused
        self.rows = Rows() if stream else _rows(module, model, attention, packing)
        skips = self.rows.filling == "stream"
        self.transformers = TransformersBody(
            seeing(base, module, towers), masks=self.rows.masks, skips=skips, layers=_layers(base, facts),
            towers=towers, processor=processor,
        )  # fmt: skip
        self.slices = self.transformers.slices = slices
        if slices is not None:
            check_slices(module, self.rows, slices)
        if packing is False:  # then only an example's own segments
            self.rows = replace(self.rows, filling=None)
        self.body: Body = self.transformers
        memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
        self.head = Projection(
            lambda: base.get_submodule(facts.head.module), facts.head, facts.vocab_size, compute,
            chunk_bytes_on(device.type, memory), low_rank=adapter.low_rank,
        )  # fmt: skip
        check_head(base, model, facts, compute)
        self.holders: dict[str, FrozenCopy | Network] = {}
        self._acting: Network | None = None
        self._training: bool | None = None
        self._checkpointing = checkpointing
        self._cost = _cost(base, facts)
        self._flops = 0.0
        if stream:
            assert compute.stream_decoder is not None  # picked by the plan
            check_decoder(module, model, facts, adapter.low_rank, compute)
            decoder = compute.stream_decoder(
                module, facts, adapter.low_rank, checkpointing=checkpointing, compute=compute
            )
            decoder.lay_out()
            self.body = StreamBody(decoder, model, Pieces(pieces, self.draws) if pieces else None)
        elif checkpointing:
            # transformers renamed it in 5.x
            named = hasattr(base, "activation_checkpointing_enable")
            enable: Any = getattr(base, "activation_checkpointing_enable" if named else "gradient_checkpointing_enable")
            enable({"use_reentrant": False, "context_fn": computed_again})
        if pieces and not stream:
            Pieces(pieces, self.draws).attach(_layers(base, facts), facts)
        self.transformers.draws = self.body.draws = self.draws
        self._run: Callable[..., dict[str, Tensor]] = self._outputs
        self.staged: StagedBody | None = None

    def compute_by(self, sharded: ShardedModel) -> None:
        """Make the model gather its weights while it computes."""
        self._run = sharded.computing(self._outputs)
        if self.staged is not None:
            self.staged.compute = sharded.computing(self.staged.compute)

    def divide_layers(self, line: Stages) -> StagedLayers:
        """Make the model compute with this rank's layers only.

        Raises:
            PlanError: its layers cannot be divided among the ranks.
        """
        layers = StagedLayers(_layers(self.base, self.facts), line.world)
        layers.check(self.base.get_submodule(self.facts.body))
        self.body = self.staged = StagedBody(self.transformers, layers, line)
        self.body.draws = self.draws
        return layers

    @contextmanager
    def undivided(self) -> Iterator[None]:
        """Inside the `with` block, the model computes with the layers of all ranks, whose weights it has."""
        staged = self.staged
        assert staged is not None
        self.body, self.staged = self.transformers, None
        try:
            with staged.undivided():
                yield
        finally:
            self.body = self.staged = staged

    def add_noise(self, alpha: float) -> None:
        """Add noise to the policy's embeddings, unless `alpha` is 0; see `EmbeddingNoise`."""
        if not alpha:
            return
        noise = EmbeddingNoise(self.base.get_input_embeddings(), alpha, self.draws)  # type: ignore[operator]
        self.transformers.noise = self.body.noise = noise

    def add_router_losses(self, coefficients: RouterCoefficients) -> None:
        """Record router outputs, if a coefficient is not 0."""
        if coefficients:
            self.routers = RouterLosses(_layers(self.base, self.facts), self.facts, coefficients, self.draws)

    def compile_layers(self, wanted: Compile) -> None:
        """Make the model's own layers compute with compiled code, if `backend.compile` is `regional`.

        Raises:
            PlanError: torch cannot compile them.
        """
        if wanted == REGIONAL:
            compile_layers(_layers(self.base, self.facts))

    def executed(self) -> float:
        """Floating-point operations since the last call; a computation with a graph counts with its backward pass."""
        total, self._flops = self._flops, 0.0
        return total + sum(other.executed() for other in self.holders.values() if isinstance(other, Network))

    @property
    def joint(self) -> bool:
        """Whether ranks compute each row together: each has some positions, or some layers."""
        return self.slices is not None or self.staged is not None

    @property
    def reads_whole_rows(self) -> bool:
        """Whether positions after the last trained one are computed too, because the length of a row decides its
        angles."""
        networks = [self, *(other for other in self.holders.values() if isinstance(other, Network))]
        return any(network.transformers.by_length for network in networks)

    def took(self, flops: float) -> None:
        """Replace the count since the last `executed` by another rank's count."""
        self._flops = flops

    def sampled(self, read: Computed, written: Computed) -> None:
        """Count the operations of a sampling batch: reading prompts, and decoding rows token by token."""
        with torch.no_grad():
            self._count(read, relogits=False)
            self._count(written, relogits=False)

    def _count(self, computed: Computed, *, relogits: bool) -> None:
        if self._cost is None:
            return
        fused = self.body.packed or self._fused
        how = Execution(skips_masked=fused, rescores=fused, relogits=relogits, checkpointing=self._checkpointing)
        flops = count(self._cost, (computed,), how)
        self._flops += flops.total if torch.is_grad_enabled() else flops.forward

    def train(self, mode: bool) -> None:
        """Switch dropout and checkpointing, only on a change, since walking the modules takes time. A caller with the
        model (`Engine.module`) may have changed the mode too."""
        if self._training is not mode or self.model.training is not mode:
            self.model.train(mode)
            if mode:
                self.draws.attach(self.model)
            self._training = mode

    def role(self, role: str) -> AbstractContextManager[Any]:
        """Inside the `with` block, the model computes as `role`.

        Raises:
            PlanError: no such role, or the adapter cannot be switched off.
        """
        if role == "policy":
            return nullcontext()
        holder = self.holders.get(role)
        if holder is not None:
            return holder.entered() if isinstance(holder, FrozenCopy) else self._handed_to(holder)
        if role != "reference":
            raise PlanError(
                f"method: it needs the role {role!r}, which the torch backend does not have",
                action=f"choose a method with the roles {', '.join({*ROLES, *self.holders})}",
            )
        if not self._can_disable:
            raise PlanError(
                "method: it needs the reference role, but the adapter cannot be switched off",
                action="choose an adapter that can be disabled, such as a low-rank one",
            )
        return self.adapter.disabled(self.model)

    @contextmanager
    def _handed_to(self, other: Network) -> Iterator[None]:
        """Inside the `with` block, another model computes."""
        self._acting = other
        other.train(False)
        try:
            yield
        finally:
            self._acting = None

    def outputs(
        self,
        rectangle: Rectangle,
        needs: Collection[str],
        *,
        everywhere: bool = False,
        expected: Tensor | None = None,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
    ) -> dict[str, Tensor]:
        """The outputs in `needs`, of the current role.

        Args:
            needs: of `logprobs` (S, T) or (S, T, K), `entropy` (S, T), `hidden` (S, T, D), or of a layer
                (`hidden:0.5`), `logits` (S, T, V); with a scalar head `values` (S, T) and `scores` (S,).
            everywhere: hidden and logits at every position, not only where the mask is true (0 elsewhere).
            expected: (S, T) or (S, T, K), numbers proportional to the coming gradient of `logprobs` where the mask is
                true, if known.
            temperature, repetition_penalty: of `logprobs` and `entropy`; `logits` are unchanged.

        Raises:
            PlanError: an unknown output, or a penalty for rows that are not plain sequences of tokens.
        """
        if self._acting is not None:
            return self._acting.outputs(
                rectangle, needs, everywhere=everywhere, expected=expected, temperature=temperature,
                repetition_penalty=repetition_penalty,
            )  # fmt: skip
        return self._run(rectangle, needs, everywhere, expected, temperature, repetition_penalty)

    def _outputs(
        self, rectangle: Rectangle, needs: Collection[str], everywhere: bool, expected: Tensor | None,
        temperature: float, repetition_penalty: float,
    ) -> dict[str, Tensor]:  # fmt: skip
        depths = self._depths(needs)
        between = {number for number in depths.values() if number < self.facts.layers}
        with nullcontext() if self.routers is None else self.routers.reading():
            states = self.body.states(
                rectangle, everywhere=everywhere and any(map(is_whole, needs)), layers=sorted(between)
            )  # fmt: skip
        mask_st = rectangle.mask
        words = bool({"logprobs", "entropy"} & set(needs))
        repetition = None
        if words and repetition_penalty != 1.0:
            repetition = _repetition(rectangle, repetition_penalty, sliced=self.slices is not None)
        counted = (
            counted_cells(rectangle) if words or self.scalar is not None else mask_st.new_zeros(0, dtype=torch.long)
        )
        head_rows = len(states.rows) if "logits" in needs else len(counted) if words else 0
        whole = partial(self._whole, own=states.own)
        if states.own is not None:
            counted = counted[states.own.take(counted)]
        if repetition is not None or (expected is not None and expected.shape != rectangle.targets.shape):
            expected = None  # or all targets of a position have one weight
        once = expected is not None and self.head.foresees(rectangle.targets)
        self._count(replace(states.computed, head_rows=head_rows), relogits=not once)
        outputs: dict[str, Tensor] = {}
        if "logprobs" in needs or "entropy" in needs:
            targets = rectangle.targets.flatten(0, 1).index_select(0, counted)
            logprobs, entropy = self.head.scores(
                states.rows.index_select(0, states.cells_st.take(counted)), targets, entropy="entropy" in needs,
                expected=None if expected is None else expected.flatten(0, 1).index_select(0, counted),
                temperature=temperature,
                repetition=repetition,
            )  # fmt: skip
            if "logprobs" in needs:
                outputs["logprobs"] = whole(_spread(logprobs, counted, mask_st.shape))
            if entropy is not None:
                outputs["entropy"] = whole(_spread(entropy, counted, mask_st.shape))
        if self.scalar is not None and set(HEAD_OUTPUTS) & set(needs):
            wanted = states.rows.index_select(0, states.cells_st.take(counted))
            values = whole(_spread(self.scalar.values(wanted), counted, mask_st.shape))
            both = {"values": values, "scores": values.gather(1, last_true(mask_st).unsqueeze(1)).squeeze(1)}
            outputs |= {name: both[name] for name in HEAD_OUTPUTS if name in needs}
        everything: dict[str, Tensor] = {}
        if "hidden" in needs:
            everything["hidden"] = states.rows.to(result_dtype(states.rows.dtype))
        for need, number in depths.items():
            read = states.read_by.get(number, states.rows)
            everything[need] = read.to(result_dtype(read.dtype))
        if "logits" in needs:
            everything["logits"] = self.head.logits(states.rows)
        for need, rows in everything.items():
            cells = whole(rows[states.cells_st])
            outputs[need] = cells if everywhere else torch.where(mask_st.unsqueeze(-1), cells, 0.0)
        return outputs

    def _whole(self, values: Tensor, own: Tensor | None) -> Tensor:
        """The numbers of all ranks that divide the positions, if there are several."""
        return values if self.slices is None or own is None else self.slices.whole(values, own)

    def _depths(self, needs: Collection[str]) -> dict[str, int]:
        """The numbers of the layers whose hidden states `needs` names.

        Raises:
            PlanError: no layer has this name.
        """
        known = OUTPUTS if self.scalar is None else OUTPUTS + HEAD_OUTPUTS
        depths: dict[str, int] = {}
        for need in needs:
            name = OutputName.of(need)
            if name.kind in known:
                if name.depth is not None:
                    depths[need] = name.layer(self.facts.layers)
                continue
            if need in HEAD_OUTPUTS:
                raise PlanError(
                    f"loss: it needs the output {need!r} of a scalar head, and the engine was built without one",
                    action="choose a method that asks for a head",
                )
            raise PlanError(
                f"loss: it needs the output {need!r}, which the torch backend does not have",
                action=f"choose a loss that reads {', '.join(known)}",
            )
        return depths


def _layers(base: nn.Module, facts: ModelFacts) -> tuple[nn.Module, ...]:
    """The decoder's layers, in order; empty if they are not at the family's path."""
    try:
        return tuple(base.get_submodule(facts.layer_path).children())
    except AttributeError:
        return ()


def _repetition(rectangle: Rectangle, penalty: float, *, sliced: bool) -> Repetition:
    """
    Raises:
        PlanError: a state has not read all preceding tokens.
    """
    if sliced:
        raise PlanError(
            "repetition_penalty: ranks divide the positions of rows", action="leave it at 1, or set scale.strategy: ddp"
        )
    if rectangle.pieces is not None or rectangle.media:
        what = "images or sounds" if rectangle.media else "segments of their own"
        raise PlanError(f"repetition_penalty: the data have {what}", action="leave it at 1")
    return Repetition.of(penalty, rectangle.tokens, on_host(rectangle).mask)


def _spread(compact: Tensor, counted_m: Tensor, shape: torch.Size) -> Tensor:
    """(S, T, ...) with the (M, ...) numbers where the mask is true, and 0 elsewhere."""
    whole = compact.new_zeros((shape.numel(), *compact.shape[1:])).index_copy(0, counted_m, compact)
    return whole.view(*shape, *compact.shape[1:])


def last_true(mask_st: Tensor) -> Tensor:
    """(S,) the last column where a row of (S, T) is true; 0 where none is."""
    columns = torch.arange(mask_st.shape[1], device=mask_st.device)
    return (columns * mask_st).amax(1)


def _rows(module: nn.Module, model: nn.Module, attention: AttentionChoice, packing: bool | None) -> Rows:
    """How examples may share rows of the model's own code.

    Raises:
        PlanError: `packing` is true and they may not; or the model is not causal.
    """
    training = model.training
    model.eval()
    try:
        check_causal(module)
        rows = find_rows(module, attention)
    finally:
        model.train(training)
    if packing and rows.obstacle:
        raise PlanError(f"backend.packing=true: {rows.obstacle}", action="set backend.packing to auto or false")
    return rows


def _cost(base: nn.Module, facts: ModelFacts) -> ModelCost | None:
    """The cost of a pass; None if layers and embeddings are not at the family's paths."""
    try:
        return cost_of(base, facts)
    except (AttributeError, NotImplementedError):
        return None
