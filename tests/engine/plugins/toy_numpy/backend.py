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
        weights = 8 * (request.model.parameters + request.trained_parameters)
        optimizer = int(request.optimizer_bytes * request.trained_parameters)
        parts = {"weights": weights, "gradients": 8 * request.trained_parameters, "optimizer": optimizer}
        return BackendPlan(given, tuple(decisions), MemoryEstimate(parts))

    def engine(self, request: EngineRequest) -> Engine:
        base = request.loader.load(request.model.reference, framework="numpy", precision="fp64", device="cpu")
        model = request.adapter.apply(base, request.facts, request.adapter_generator)
        if request.head is not None:
            model.delta |= new_head(request.head_generator, request.facts.hidden_size)
        return NumpyEngine(model, request)


def build(options: NoOptions, context: Context) -> NumpyBackend:
    return NumpyBackend()
