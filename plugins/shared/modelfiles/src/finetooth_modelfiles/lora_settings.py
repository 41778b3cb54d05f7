"""Whether an artifact in peft's layout is of the adapter at hand: its config, and the shapes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import RecipeError, UserError

SETTINGS = (
    "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora",
    "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
"""By which an adapter computes something else than W + scale B A, of one rank and scale in all modules."""
PLAIN_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave W as it is. With another one, such as pissa, peft takes something off W each
time that it loads the adapter."""


def special_setting(config: Mapping[str, Any]) -> str:
    """The first setting that says of more than W + scale B A; empty if none does.

    Args:
        config: content of an `adapter_config.json`.
    """
    if config.get("init_lora_weights") not in PLAIN_BEGINNINGS:
        return f"init_lora_weights {config['init_lora_weights']}"
    if config.get("bias", "none") != "none":
        return f"bias {config['bias']}"
    return next((name for name in SETTINGS if config.get(name)), "")


def scale_of(config: Mapping[str, Any]) -> float:
    """The factor on B A: alpha over the rank, or with rank-stabilised scaling over its root."""
    rank: float = config["r"]
    scale: float = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return scale


def check_settings(saved: Mapping[str, Any], wanted: Mapping[str, tuple[str, Any]], folder: Path) -> None:
    """Whether an artifact's config is that of the adapter at hand. A choice that it does not name was not made: files
    of earlier releases of peft lack the later ones.

    Args:
        wanted: option and value by the name of peft's setting.

    Raises:
        UserError: a setting differs; names the option.
    """
    for setting, (option, value) in wanted.items():
        recorded = saved.get(setting, False if isinstance(value, bool) else None)
        if recorded != value:
            raise UserError(
                f"{folder}: {option} is {recorded} there and {value} here",
                action=f"set adapter.{option} as it was",
            )


def check_shapes(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Check that an artifact holds the tensors of the adapter at hand, by name and shape.

    Args:
        theirs: tensors of the artifact, of any framework, by name.

    Raises:
        UserError: it holds others.
    """
    for name in sorted(theirs.keys() ^ mine.keys()):
        where = "only in the artifact" if name in theirs else "missing in the artifact"
        raise UserError(f"{folder}: {name} is {where}", action="use the adapter.targets of the run it comes from")
    for name, tensor in mine.items():
        if theirs[name].shape != tensor.shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(theirs[name].shape)}, the model's {tuple(tensor.shape)}",
                action="use the model and adapter of the run it comes from",
            )


def check_directions(path: str, lengths: Any) -> None:
    """Checks that weights have directions for DoRA to train, as rows of a head may not that belong to no token.

    Args:
        path: of the module.
        lengths: of the weights of each output.

    Raises:
        RecipeError: a length is 0, by which the layer would divide.
    """
    none = np.flatnonzero(np.asarray(lengths).reshape(-1) == 0)
    if len(none) == 0:
        return
    more = f" (and those of {len(none) - 1} more)" if len(none) > 1 else ""
    raise RecipeError(
        "adapter.dora",
        f"all weights of output {none[0]} of {path} are 0{more}, so they have no direction to train",
        action="leave that module out of adapter.targets, or set adapter.dora: false",
    )
