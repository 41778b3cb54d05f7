"""What a model says of data, at the sampling temperature and without a gradient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from finetooth_hooks import arrays as xp
from finetooth_hooks.datum import Datum
from finetooth_hooks.engine import Engine
from finetooth_hooks.losses import Contribution, LossData, LossResult, LossSpec, LossState, Outputs
from numpy.typing import NDArray


def said_of(
    engine: Engine, data: Sequence[Datum], names: Collection[str], *, temperature: float = 1.0, role: str = "policy"
) -> list[Mapping[str, NDArray[Any]]]:
    """Outputs of each datum by name, as `Forward.outputs` has them.

    Args:
        names: `logprobs`, `values`, ... of the role.
        temperature: that log-probabilities are taken at.
    """

    def nothing(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        some = outputs["logprobs"]
        mask = data.mask[..., None] if some.ndim > data.mask.ndim else data.mask
        return LossResult({"none": Contribution(xp.sum(xp.where(mask, some, 0.0)) * 0.0, per="none")})

    spec = LossSpec("asking", nothing, needs=frozenset({"logprobs", *names}), temperature=temperature)
    return list(engine.forward(data, spec, role=role, returns=tuple(names), train=False).outputs)
