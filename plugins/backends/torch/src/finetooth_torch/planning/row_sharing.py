"""Whether examples may share rows, according to a model's config; and what that saves. No framework."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import PlanRequest
from finetooth_steps.layout import filled
from finetooth_steps.row_filling import Filling

from finetooth_torch.planning.attention import AttentionChoice

CARRIES = ("mamba", "linear_attention", "conv", "recurrent", "rwkv", "ssm", "hybrid", "delta", "xlstm", "hyena")
"""Parts of the names of recurrent layers."""
WHOLE = ("recurrent", "rwkv", "xlstm", "hyena")
"""Recurrent layers that transformers does not compute by a function that can get each sequence separately."""
LAYER_LISTS = ("layer_types", "layers_block_type", "block_types", "layers_type")
"""Keys of configs with the kind of each layer."""
CARRYING_SETTINGS = ("mamba_", "ssm_", "linear_conv_kernel_dim", "conv_L_cache", "conv_kernel", "time_step_rank")
"""Prefixes of settings that only such layers have."""
ANGLES = ("dynamic", "longrope")
"""Kinds of rotary scaling whose angles depend on the length of the sequence."""

SHORTEST = 64
"""Positions of a chunk of linear attention, the minimum per sequence."""
STEPS = 20
"""Steps that the plan lays out as a trial."""
MOST_STEPS, MOST_DATA = 200, 4096
"""Steps, and examples in them, of the trial for a run's largest micro-batch."""


WITH_TOWERS = ("vision_config", "audio_config")
"""Keys in configs of models that read more than text."""


def obstacle(config: Mapping[str, Any], attention: AttentionChoice, *, divided: bool = False) -> str:
    """Why examples cannot share a row, as far as attention and config show; empty if they may.

    Args:
        config: of the model, in transformers' shape.
        divided: ranks have parts of a row, so no state can restart inside it. Otherwise a trial decides.
    """
    if attention.filling is None:
        return f"attention {attention.names} takes no mask that keeps sequences apart"
    if divided and any(config.get(name) for name in WITH_TOWERS):
        return "the model finds the places of images and sounds in a row by itself"
    for part in _parts(config):
        carrying = _carrying(part)
        if carrying and (divided or any(word in carrying for word in WHOLE)):
            return f"{carrying} layers hand a state on from one sequence of a row to the next"
    return ""


def scaled_by_length(config: Mapping[str, Any]) -> tuple[str, int]:
    """The kind of a rotary scaling whose angles depend on the length of the sequence, and up to which length they do
    not; ("", 0) if there is none."""
    original = "original_max_position_embeddings"
    for part in _parts(config):
        scalings = [part.get("rope_scaling"), part.get("rope_parameters")]
        scalings += [inner for of in scalings if isinstance(of, Mapping) for inner in of.values()]
        for of in (of for of in scalings if isinstance(of, Mapping)):
            if (kind := of.get("rope_type", of.get("type"))) in ANGLES:
                length = of.get(original) or part.get(original) if kind == "longrope" else None
                return str(kind), int(length or part.get("max_position_embeddings") or 0)
    return "", 0


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config and its language model's config."""
    inner = [config[name] for name in ("text_config", "llm_config") if isinstance(config.get(name), Mapping)]
    return [config, *inner]


def _carrying(config: Mapping[str, Any]) -> str:
    """The names of the recurrent layers."""
    kinds = [str(config.get("model_type", ""))]
    for name in LAYER_LISTS:
        listed = config.get(name)
        kinds += [str(kind) for kind in listed] if isinstance(listed, list | tuple) else []
    for kind in kinds:
        carrier = next((word for word in CARRIES if word in kind), "")
        if carrier:
            return kind
    settings = (key for key, value in config.items() if value is not None and key.startswith(CARRYING_SETTINGS))
    return next(settings, "").split("_")[0]


def check_sampled(request: PlanRequest) -> None:
    """Check that sampling stays within the positions at which rotary angles do not change.

    Raises:
        PlanError: the run samples rows whose rotary angles change with each new token.
    """
    kind, same = scaled_by_length(request.base.model.config)
    if kind == "dynamic" and "generate" in request.needs and request.train.max_length > same:
        raise PlanError(
            f"train.max_length={request.train.max_length}: the run samples, and from {same} positions on the rotary "
            f"angles of the model ({kind}) change with each token of a row",
            action=f"set it to at most {same}, or rope_scaling.rope_type to ntk or yarn",
        )


def scanned(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Most positions that a recurrent layer computes per sequence."""
    return 2 ** np.ceil(np.log2(np.maximum(lengths, SHORTEST))).astype(np.int64)


def rescanned(lengths: Sequence[int]) -> float:
    """Relative excess of `scanned` over the positions of such sequences."""
    return float(scanned(lengths).sum() / sum(lengths) - 1)


def padding(steps: Sequence[Sequence[int]], budget: int, filling: Filling | None) -> float:
    """Share of computed positions that is padding.

    Args:
        steps: positions of each step's examples.
        budget: positions of a micro-batch.
    """
    used = sum(sum(step) for step in steps)
    computed = sum(batch.positions for step in steps for batch in filled(step, budget, filling))
    return 1 - used / computed if computed else 0.0


def likely_steps(lengths: Sequence[int], batch_size: int, steps: int = STEPS) -> list[list[int]]:
    """Steps with examples as long as the run's.

    Args:
        lengths: quantiles of the examples' lengths, shortest first (`DataReport.lengths`).
        steps: how many.
    """
    generator = np.random.default_rng(0)
    shares = np.linspace(0, 1, len(lengths))
    drawn = np.interp(generator.random((steps, batch_size)), shares, lengths)
    return [[max(1, math.floor(length)) for length in step] for step in drawn.tolist()]


def largest_positions(
    lengths: Sequence[int], batch_size: int, budget: int, filling: Filling | None, *, steps: int | None
) -> int:
    """Positions of the likely largest micro-batch of a run, padding included.

    Args:
        lengths: see `likely_steps`.
        budget: positions of a micro-batch.
        steps: of the run; None: it has many.
    """
    drawn = likely_steps(lengths, batch_size, max(STEPS, min(MOST_STEPS, MOST_DATA // batch_size)))
    largest = [max(batch.positions for batch in filled(step, budget, filling)) for step in drawn]
    return math.ceil(max(largest) if steps is None else np.quantile(largest, steps / (steps + 1)))
