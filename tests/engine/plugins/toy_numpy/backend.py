"""Plans and builds the NumPy engine."""

from __future__ import annotations

from dataclasses import replace

from finetooth_hooks import Context, Decision, Engine, MemoryEstimate, NoOptions
from finetooth_hooks.protocols import BackendPlan, EngineRequest, PlanRequest

from toy_numpy.engine import NumpyEngine
from toy_numpy.model import new_head


class NumpyBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def plan(self, request: PlanRequest) -> BackendPlan:
        given = request.train
        decided = {
            "precision": ("fp32", "the toy computes in fp64; no lower precision is offered"),
            "micro_batch_tokens": (1024, "anything fits"),
            "gradient_checkpointing": (False, "one layer"),
        }
        decisions = []
        for name, (value, reason) in decided.items():
            asked = getattr(given, name)
            chosen = value if asked is None else asked
            decisions.append(Decision(f"train.{name}", chosen, reason if asked is None else "the recipe says so"))
            given = replace(given, **{name: chosen})
        weights = 8 * (request.base.model.parameters + request.trains.parameters)
        optimizer = int(request.updates.state_bytes * request.trains.parameters)
        parts = {"weights": weights, "gradients": 8 * request.trains.parameters, "optimizer": optimizer}
        return BackendPlan(given, tuple(decisions), MemoryEstimate(parts))

    def engine(self, request: EngineRequest) -> Engine:
        base = request.base.load(framework="numpy", precision="fp64", device="cpu")
        model = request.trains.adapter.apply(base, request.base.facts, request.trains.generator)
        if request.trains.head is not None:
            model.delta |= new_head(request.trains.head_generator, request.base.facts.hidden_size)
        return NumpyEngine(model, request)


def build(options: NoOptions, context: Context) -> NumpyBackend:
    return NumpyBackend()
