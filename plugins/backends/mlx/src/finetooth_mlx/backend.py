"""Builds engines that compute with MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetooth_hooks import Context, NoOptions
from finetooth_hooks.protocols import BackendPlan, EngineRequest, PlanRequest

from finetooth_mlx.planning import decide

if TYPE_CHECKING:
    from finetooth_mlx.engine import MlxEngine


def build(options: NoOptions, context: Context) -> MlxBackend:
    """The backend."""
    del options, context
    return MlxBackend()


class MlxBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def plan(self, request: PlanRequest) -> BackendPlan:
        return decide(request)

    def engine(self, request: EngineRequest) -> MlxEngine:
        """Load the weights and build the engine."""
        import mlx.core as mx

        from finetooth_mlx.adapters import FullAdapter
        from finetooth_mlx.engine import MlxEngine
        from finetooth_mlx.heads import add_head
        from finetooth_mlx.network import Network

        hardware, train = request.place.hardware, request.plan.train
        mx.set_default_device(mx.cpu if hardware.device == "cpu" else mx.gpu)
        assert train.precision is not None
        # where weights of the base may train, their masters begin as the checkpoint has them
        precision = train.precision if request.trains.base_frozen else "fp32"
        base = request.base.load(framework="mlx", precision=precision, device=hardware.device)
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
            if wanted.model is None:  # arrays of MLX never change: a copy takes memory once the policy has moved
                network.holders[role] = dict(network.initial)
                continue
            assert wanted.loader is not None and wanted.facts is not None
            other = wanted.loader.load(
                wanted.model.reference, framework="mlx", precision=train.precision, device=hardware.device
            )
            other.freeze()
            network.holders[role] = Network(
                other, wanted.facts, FullAdapter(), precision=train.precision, can_disable=False, checkpointing=False
            )
        return MlxEngine(request, network)
