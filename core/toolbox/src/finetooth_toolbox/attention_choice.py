"""Finds suitable attention for a model's layers from the model's config, without a framework."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from finetooth_hooks import Attention
from finetooth_hooks.compute.attention import LayerKind, Lengths
from finetooth_hooks.protocols import HardwareFacts, ModelFacts

TEXT_CONFIGS = ("text_config", "llm_config")
"""Keys of the language model's config in the config of a multimodal model."""
WINDOWED = ("sliding", "local", "window")
"""Parts of the names of layers with a window."""
DROPOUTS = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob", "attn_dropout")
"""Names in configs of the share of attention weights that are dropped in training."""
OTHER_HARDWARE = "it is for "
"""The beginning of the reason against an entry for other devices."""
WITHOUT = ("mamba", "linear", "conv", "recurrent", "rwkv", "ssm", "delta", "moe", "mlp")
"""Parts of the names of layers without attention."""


@dataclass(frozen=True)
class Demand:
    """Requirements on attention of layers of one kind.

    Attributes:
        kind: of the layers.
        head_size: elements of a head, of queries and keys.
        window: number of visible positions, if the config limits it; None: all.
        chunks: a position sees only its own chunk.
        grouped: keys and values have fewer heads than queries.
        dropout: weights are dropped at random in training.
        softcap, sinks: see `AttentionNeeds`.
    """

    kind: LayerKind
    head_size: int
    window: int | None = None
    chunks: bool = False
    grouped: bool = False
    dropout: bool = False
    softcap: float | None = None
    sinks: bool = False


def demands_of(config: Mapping[str, Any], facts: ModelFacts) -> tuple[Demand, ...]:
    """The requirements of a model's layers, one demand per kind of layer; if a config has a window but does not name
    its layers, one demand covers both kinds.

    Args:
        config: of the model, in transformers' shape.
    """
    text = next((config[name] for name in TEXT_CONFIGS if isinstance(config.get(name), Mapping)), config)
    window = text.get("sliding_window") if text.get("use_sliding_window", True) else None
    window = window if isinstance(window, int) and window > 0 else None
    chunk = text.get("attention_chunk_size")
    listed = [str(kind) for kind in text.get("layer_types") or () if not any(word in str(kind) for word in WITHOUT)]
    windowed = any(word in kind for kind in listed for word in WINDOWED)
    chunked = any("chunk" in kind for kind in listed) if listed else bool(chunk)
    whole = any("chunk" not in kind and not any(word in kind for word in WINDOWED) for kind in listed)
    heads = [facts.head_dim, int(text.get("qk_nope_head_dim") or 0) + int(text.get("qk_rope_head_dim") or 0)]
    full = Demand(
        "full",
        head_size=max(*heads, int(text.get("global_head_dim") or 0)),
        grouped=facts.kv_heads < facts.heads,
        dropout=any(text.get(name) for name in DROPOUTS),
        softcap=facts.attention.softcap,
        sinks=facts.attention.sinks,
    )
    sliding = replace(full, kind="sliding", head_size=max(heads), window=window, chunks=chunked)
    if listed:
        return (*((full,) if whole else ()), *((sliding,) if windowed or chunked else ())) or (full,)
    return (full, sliding) if window or chunked else (full,)


def obstacle(entry: Attention, demand: Demand, hardware: HardwareFacts, precision: str) -> str:
    """The reason why an entry cannot compute attention of such layers on this hardware, as the end of a sentence; empty
    if it can.

    Args:
        precision: of queries, keys and values.
    """
    serves = entry.serves
    device = hardware.device.split(":")[0]
    patterns, architecture = serves.architectures, hardware.architecture
    limits = [most for pattern, most in serves.heads_on.items() if fnmatchcase(architecture, pattern)]
    limit = limits[0] if limits else serves.largest_head or float("inf")
    reasons = (
        (device not in serves.devices, f"{OTHER_HARDWARE}{_enumeration(serves.devices)}, not for {hardware.label}"),
        (
            bool(patterns and architecture) and not any(fnmatchcase(architecture, pattern) for pattern in patterns),
            f"{OTHER_HARDWARE}{_enumeration(patterns)}, and {hardware.label} is {architecture}",
        ),
        (precision not in serves.precisions, f"it computes {_enumeration(serves.precisions)}, not {precision}"),
        (demand.head_size > limit, f"heads have {demand.head_size} elements, and it takes {limit}"),
        (
            demand.head_size % serves.head_multiple != 0,
            f"heads have {demand.head_size} elements, and it takes multiples of {serves.head_multiple}",
        ),
        (
            demand.window is not None and not serves.window,
            f"layers see {demand.window} positions, and it has no window",
        ),
        (demand.chunks and not serves.chunks, "layers see chunks of positions, which it has no mask for"),
        (demand.softcap is not None and not serves.softcap, "the model caps its scores, and it cannot"),
        (demand.sinks and not serves.sinks, "the model's heads have sinks, and it has none"),
        (demand.grouped and not serves.grouped, "heads share keys and values, and it takes one of each a head"),
        (demand.dropout and not serves.dropout, "the model drops weights of attention, which it cannot key by datum"),
        (not serves.backward, "it has no gradients"),
    )
    return next((reason for holds, reason in reasons if holds), "") or missing_packages(serves.packages)


def _enumeration(names: Any) -> str:
    *others, last = sorted(name.replace("*", "x").replace("?", "x") for name in names) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def queries_of(lengths: Lengths, positions: int) -> list[int]:
    """Number of queries of each sequence, row by row, if the queries of a row are at its last positions.

    Args:
        lengths: as in `finetooth_hooks.compute.attention.Attention`.
    """
    queries: list[int] = []
    for row in lengths:
        left = positions
        counts: list[int] = []
        for length in reversed(row):
            counts.append(min(length, left))
            left -= counts[-1]
        queries += reversed(counts)
    return queries


_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9]+(?:\.[0-9]+)*))?\s*")


def missing_packages(packages: tuple[str, ...]) -> str:
    """The reason why an entry's packages are missing, `flash-attn is not installed`; empty if they are installed.
    Imports none of them.

    Args:
        packages: names of distributions, some with a minimum version: `torch>=2.10`.

    Raises:
        ValueError: a requirement has another form.
    """
    from importlib.metadata import PackageNotFoundError, version

    for text in packages:
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            raise ValueError(f"package {text!r}: write NAME or NAME>=VERSION")
        name, least = match.groups()
        try:
            installed = version(name)
        except PackageNotFoundError:
            return f"package {name} is not installed"
        if least is not None and _release(installed) < _release(least):
            return f"it needs {name} {least}, and {installed} is installed"
    return ""


def _release(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of a version: `2.13.0+cpu` is (2, 13, 0)."""
    begins = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(number) for number in begins.group().split(".")) if begins else ()
