"""What a model says of data, of the distribution that is sampled from and without a gradient."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_hooks import arrays as xp
from finetooth_hooks.compute.losses import Contribution, LossData, LossResult, LossSpec, LossState, Outputs
from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, Forward
from numpy.typing import NDArray

from finetooth_rollouts.options import RolloutOptions


def for_sampled(spec: LossSpec, options: RolloutOptions) -> LossSpec:
    """A loss of the distribution that is sampled from; what `top_k`, `top_p` and `min_p` left is in the data."""
    return replace(spec, temperature=options.temperature, repetition_penalty=options.repetition_penalty)


def outputs_of(
    engine: Engine, data: Sequence[Datum], names: Collection[str], options: RolloutOptions, *, role: str = "policy"
) -> list[Mapping[str, NDArray[Any]]]:
    """Outputs of each datum by name, as `Forward.outputs` has them; see `request_outputs`."""
    return list(request_outputs(engine, data, names, options, role=role).outputs)


def request_outputs(
    engine: Engine, data: Sequence[Datum], names: Collection[str], options: RolloutOptions, *, role: str = "policy"
) -> Forward:
    """A pass that asks for outputs and has no loss.

    Args:
        names: `logprobs`, `values`, ... of the role.
        options: say what log-probabilities are of.
    """

    def nothing(outputs: Outputs, data: LossData, state: LossState) -> LossResult:
        some = outputs["logprobs"]
        mask = data.mask[..., None] if some.ndim > data.mask.ndim else data.mask
        return LossResult({"none": Contribution(xp.sum(xp.where(mask, some, 0.0)) * 0.0, per="none")})

    spec = for_sampled(LossSpec("asking", nothing, needs=frozenset({"logprobs", *names})), options)
    return engine.forward(data, spec, role=role, returns=tuple(names), train=False)
