"""Builds engines that compute with MLX."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from finetooth_hooks import Options
from finetooth_hooks.protocols import BackendPlan, BasePart, EngineRequest, PlanRequest, RoleRequest
from finetooth_modelfiles.sizes import role_quantizer
from finetooth_steps.shared_base import base_key

from finetooth_mlx.planning import KV_CACHE, decide

if TYPE_CHECKING:
    from finetooth_mlx.engine import MlxEngine


class MlxBackendOptions(Options):
    """Options of the MLX backend."""

    share_base: bool = False
    """Whether the engines of a process share one copy of the base's weights. Each needs this option and an adapter that
    leaves the base unchanged. For a server with many adapters on one base."""
    packing: Literal["auto"] | bool = "auto"
    """Whether examples of a step share rows of the model's input, if that saves 5 % of the positions. `auto` packs if a
    test shows that the model keeps them apart; `true` refuses a model that does not."""
    compile: Literal["auto"] | bool = "auto"
    """Whether MLX compiles the optimizer's update, whose shapes never change, and so fuses its operations. `auto` does
    so on Apple silicon; on a CPU MLX calls a C++ compiler. mlx-lm compiles parts of a layer itself, such as its
    activation."""
    kv_cache: Literal["plain", "int8", "int4"] = "plain"
    """How sampling stores keys and values. `plain`: in the model's precision. `int8`, `int4`: with a scale and an
    offset for every 64 numbers, in about half and a quarter of the memory of bf16. Answers and their log-probabilities
    then come from a slightly different policy than the one that trains. Layers with a sliding window stay plain."""


class MlxBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def __init__(self, options: MlxBackendOptions) -> None:
        self._options = options

    def plan(self, request: PlanRequest) -> BackendPlan:
        return decide(request, self._options.kv_cache)

    def engine(self, request: EngineRequest) -> MlxEngine:
        """Load the weights and build the engine.

        Raises:
            EngineError: memory ran out.
        """
        from finetooth_mlx.exhaustion import attempted

        return attempted(lambda: self._engine(request), "building the engine", request)

    def _engine(self, request: EngineRequest) -> MlxEngine:
        import mlx.core as mx

        from finetooth_mlx.adapters import FullAdapter
        from finetooth_mlx.cache import check_cache
        from finetooth_mlx.engine import MlxEngine
        from finetooth_mlx.heads import add_head
        from finetooth_mlx.network import Network
        from finetooth_mlx.sharing import OF_THE_PROCESS, Models, shared

        hardware, train = request.place.hardware, request.plan.train
        mx.set_default_device(mx.cpu if hardware.device == "cpu" else mx.gpu)
        assert train.precision is not None
        # if weights of the base train, their master weights begin with the checkpoint's numbers
        precision = train.precision if request.trains.base_frozen else "fp32"
        models: Models = OF_THE_PROCESS if self._options.share_base and request.trains.base_frozen else {}
        load = partial(request.base.load, framework="mlx", precision=precision, device=hardware.device)
        base = shared(models, base_key(request, precision), load)
        model = request.trains.adapter.apply(base, request.base.facts, request.trains.generator)
        facts, pad_id = request.base.facts, request.text.tokenizer.pad_id
        model.pad_id = pad_id if pad_id is not None and pad_id < facts.vocab_size else None
        if request.trains.head is not None:
            add_head(model, request.trains.head, facts.hidden_size, request.trains.head_generator)
        network = Network(
            model, facts, request.trains.adapter, precision=train.precision, can_disable=request.trains.can_disable,
            checkpointing=bool(train.gradient_checkpointing), noise=train.embedding_noise,
        )  # fmt: skip
        for role, wanted in request.roles.items():
            if wanted.model is None:  # arrays never change: a copy takes memory only after a step
                network.holders[role] = dict(network.initial)
                continue
            assert wanted.loader is not None and wanted.facts is not None
            load = partial(
                wanted.loader.load, wanted.model.reference, framework="mlx", precision=train.precision,
                device=hardware.device, quantizer=role_quantizer(request.base, wanted),
            )  # fmt: skip
            other = shared(models, base_key(_with_base(request, wanted), train.precision), load)
            other.freeze()
            network.holders[role] = Network(
                other, wanted.facts, FullAdapter(), precision=train.precision, can_disable=False, checkpointing=False
            )
        bits = KV_CACHE[self._options.kv_cache]
        check_cache(network, bits)
        packing = None if self._options.packing == "auto" else self._options.packing
        compiled = hardware.device != "cpu" if self._options.compile == "auto" else self._options.compile
        return MlxEngine(request, network, bits, packing, compiled=compiled)


def _with_base(request: EngineRequest, wanted: RoleRequest) -> EngineRequest:
    """The request to load a role's model."""
    assert wanted.model is not None and wanted.facts is not None and wanted.loader is not None
    base = BasePart(wanted.model, wanted.facts, wanted.loader)
    if role_quantizer(request.base, wanted) is not None:
        return replace(request, base=replace(base, quantizer=request.base.quantizer))
    picks = {kind: pick for kind, pick in request.plan.picks.items() if kind != "quantizer"}
    options = {kind: of for kind, of in request.plan.options.items() if kind != "quantizer"}
    return replace(request, base=base, plan=replace(request.plan, picks=picks, options=options))
