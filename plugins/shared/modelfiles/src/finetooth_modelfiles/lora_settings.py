"""What peft's config of a LoRA may say that changes what the adapter computes, or what it is added to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
