"""Converts the Tinker protocol's JSON requests for the service."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from finetooth_hooks import DataError, Sampling, UserError
from finetooth_hooks.engine import StepSettings
from finetooth_hooks.protocols import ModelFacts
from finetooth_wire import wire
from numpy.typing import NDArray

from finetooth_server.batches.scores import ScoreRequest

ALPHA = 32.0
"""LoRA's alpha, which the protocol does not send; other servers use the same."""

LONGEST = 32768
"""New tokens if the client sets no limit; the model's own length ends them earlier."""

MOST_OF_ONE = 1024
"""Most tokens whose log-probabilities a request may name at one place."""

UNKNOWN_OPTIMIZERS = frozenset({"dimuon"})
"""Optimizers that the client names without defining them."""

PARTS = ("train_attn", "train_mlp", "train_unembed")
"""Parts of a model for a client's LoRA; all by default."""


def sections(request: Mapping[str, Any], template: Mapping[str, Any], facts: ModelFacts | None) -> dict[str, Any]:
    """The sections of a recipe from `create_model`.

    Args:
        template: the server's recipe of the base model.
        facts: of that model; None if it is not served.

    Raises:
        UserError: the server does not offer it.
    """
    lora = request.get("lora_config")
    recipe: dict[str, Any] = {"schedule": "constant", "train": {"max_grad_norm": 0.0}}
    if lora is not None:
        lora = wire.mapping(lora, "lora_config")
        rank = whole(lora.get("rank"), "lora_config.rank", 0)
        recipe["adapter"] = "full" if rank == 0 else _lora(lora, rank, template, facts)
        if lora.get("seed") is not None:
            recipe["train"]["seed"] = whole(lora["seed"], "lora_config.seed", 0)
    recipe["optimizer"] = optimizer(request)
    return recipe


def optimizer(request: Mapping[str, Any]) -> dict[str, Any]:
    """The section `optimizer` from `optimizer_config`; AdamW by default.

    Raises:
        DataError: the server does not offer it.
    """
    config = wire.mapping(request.get("optimizer_config") or {"type": "adamw"}, "optimizer_config")
    options = {name: value for name, value in config.items() if name != "type"}
    name = str(config.get("type") or "adamw")
    if name in UNKNOWN_OPTIMIZERS:
        raise DataError(
            f"optimizer_config {name!r}",
            "not offered, what it computes is not documented",
            action="choose adamw, muon or dion",
        )
    return {"name": name, **options}


def lora_parts(recipe: Mapping[str, Any], facts: ModelFacts) -> dict[str, bool | None]:
    """The parts of a model with a recipe's LoRA, for `weights_info`; None without one."""
    adapter = recipe.get("adapter")
    name = adapter.get("name") if isinstance(adapter, Mapping) else adapter
    if name != "lora":
        return dict.fromkeys(PARTS)
    targets = adapter.get("targets", "all-linear") if isinstance(adapter, Mapping) else "all-linear"
    if targets in ("all-linear", "attention"):
        names = facts.linear_targets if targets == "all-linear" else facts.attention_targets
    else:
        names = tuple(targets)
    return {part: any(name in _modules(part, facts) for name in names) for part in PARTS}


def _spelled(parts: Sequence[str], facts: ModelFacts) -> str | list[str]:
    """Targets of a LoRA, by the recipe's own name if there is one."""
    words = {("train_attn", "train_mlp"): "all-linear", ("train_attn",): "attention"}
    return words.get(tuple(parts)) or [name for part in parts for name in _modules(part, facts)]


def _modules(part: str, facts: ModelFacts) -> tuple[str, ...]:
    """Names of a part's modules."""
    if part == "train_attn":
        return facts.attention_targets
    if part == "train_mlp":
        return tuple(name for name in facts.linear_targets if name not in facts.attention_targets)
    return (facts.head.module,)


def _lora(lora: Mapping[str, Any], rank: int, template: Mapping[str, Any], facts: ModelFacts | None) -> dict[str, Any]:
    """Keep the targets of the server's recipe, unless the client excludes a part."""
    adapter = template.get("adapter")
    options = {k: v for k, v in adapter.items() if k not in ("name", "rank")} if isinstance(adapter, Mapping) else {}
    wanted = [part for part in PARTS if lora.get(part, True)]
    if not wanted:
        raise UserError("lora_config: no part of the model would train", action=f"leave one of {', '.join(PARTS)} true")
    if facts is not None and ("targets" not in options or len(wanted) < len(PARTS)):
        options["targets"] = _spelled(wanted, facts)
    return {"alpha": ALPHA, **options, "name": "lora", "rank": rank}


def step_settings(request: Mapping[str, Any]) -> StepSettings:
    """Numbers of `optim_step`.

    Raises:
        DataError: they are invalid.
    """
    adam = request.get("adam_params")
    parameters = wire.mapping(adam if adam is not None else request.get("optimizer_params"), "adam_params")
    numbers = {
        name: wire.number(value, name) for name, value in parameters.items() if name != "type"
    }  # no NaN, no null
    if adam is not None:
        numbers = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, **numbers}
    rate, norm = numbers.pop("learning_rate", None), numbers.pop("grad_clip_norm", 0.0)
    options: dict[str, float | tuple[float, ...]] = {}
    if "beta1" in numbers and "beta2" in numbers:
        options["betas"] = (numbers.pop("beta1"), numbers.pop("beta2"))
    return StepSettings(rate, max(0.0, norm), {**options, **numbers})


def sampling(request: Mapping[str, Any]) -> tuple[Sampling, bool]:
    """The sampling settings of `asample`, and whether it chose the seed.

    Raises:
        DataError: a setting is neither a number nor a text.
    """
    settings = wire.mapping(request.get("sampling_params") or {}, "sampling_params")
    stop, ids = _stops(settings.get("stop"))
    seed = settings.get("seed")
    top_k = settings.get("top_k")
    most = settings.get("max_tokens")
    return Sampling(
        max_tokens=LONGEST if most is None else whole(most, "max_tokens", 1),
        temperature=_at_least(settings.get("temperature", 1.0), "temperature", 0.0),
        top_k=max(0, whole(-1 if top_k is None else top_k, "top_k", -1)),
        top_p=wire.number(1.0 if settings.get("top_p") is None else settings["top_p"], "top_p"),
        n=whole(request.get("num_samples", 1), "num_samples", 1),
        stop=stop,
        stop_ids=ids,
        seed=secrets.randbits(62) if seed is None else whole(seed, "seed", None),
    ), seed is not None


def requested_logprobs(request: Mapping[str, Any], length: int) -> ScoreRequest:
    """The log-probabilities that `asample` requests besides completions.

    Args:
        length: of the prompt, in tokens.

    Raises:
        DataError: they are invalid.
    """
    if request.get("record_stability_info"):
        raise DataError("record_stability_info", "not offered, nothing here reads it", action="leave it out")
    rows, ids = _targets(request.get("target_prompt_logprobs"), length)
    names = {
        "top_prompt": "topk_prompt_logprobs",
        "top_samples": "topk_sample_logprobs",
        "alternatives": "prompt_alt_tokens_k",
        "last": "prompt_logprobs_last_n",
    }
    numbers = {ours: whole(request.get(name) or 0, name, 0) for ours, name in names.items()}
    for ours, value in numbers.items():
        if ours != "last" and value > MOST_OF_ONE:
            raise DataError(names[ours], f"{value} tokens for one place", action=f"ask for at most {MOST_OF_ONE}")
    scored = bool(request.get("prompt_logprobs"))
    if request.get("prompt_logprobs_last_n") is not None and not (scored and 1 <= numbers["last"] < length):
        raise DataError(
            "prompt_logprobs_last_n",
            f"{numbers['last']} of a prompt of {length} tokens",
            action="choose 1 to one less than the prompt has, together with prompt_logprobs",
        )
    made: dict[str, Any] = {**numbers, "rows": rows, "ids": ids}
    return ScoreRequest(scored, **made)


def _targets(tensor: Any, length: int) -> tuple[Any, Any]:
    """Rows and ids of the cells of a tensor (N - 1, K), in the order of its values."""
    if tensor is None:
        return None, None
    where = "target_prompt_logprobs"
    tensor = wire.mapping(tensor, where)
    if tensor.get("dtype") != "int64":
        raise DataError(where, f"type {tensor.get('dtype')!r}", action="send int64")
    ids = _ids(tensor.get("data"), where)
    shape = [whole(n, f"{where}.shape", 0) for n in wire.sequence(tensor.get("shape"), f"{where}.shape")]
    if len(shape) != 2 or shape[0] != length - 1:
        raise DataError(where, f"shape {shape} for a prompt of {length} tokens", action=f"send [{length - 1}, K]")
    if tensor.get("sparse_crow_indices") is None:
        if shape[0] * shape[1] != len(ids):
            raise DataError(where, f"{len(ids)} values for shape {shape}", action="send as many as the shape holds")
        return np.repeat(np.arange(shape[0]), shape[1]), ids
    starts, columns = (_ids(tensor.get(f"sparse_{name}_indices"), where) for name in ("crow", "col"))
    return rows_of_cells(starts, columns, len(ids), shape, where), ids


def rows_of_cells(
    starts: NDArray[Any], columns: NDArray[Any], count: int, shape: Sequence[int], where: str
) -> NDArray[Any]:
    """The row of each of `count` cells of a sparse matrix in compressed rows.

    Args:
        starts: for each row, and for the end, the number of cells before it.
        columns: of each cell.

    Raises:
        DataError: they do not describe a matrix of this shape.
    """
    fits = (
        len(starts) == shape[0] + 1
        and len(columns) == count
        and starts[0] == 0
        and starts[-1] == count
        and bool((np.diff(starts) >= 0).all())
        and (not len(columns) or (columns.min() >= 0 and columns.max() < shape[1]))
    )
    if not fits:
        raise DataError(where, "its indices do not fit its shape", action="send compressed rows")
    return np.repeat(np.arange(shape[0]), np.diff(starts))


def _ids(values: Any, where: str) -> Any:
    return np.array([whole(value, where, -1) for value in wire.sequence(values, where)], np.int64)


def target_layout(request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The layout of `target_prompt_logprobs`, also for the answer."""
    tensor = request.get("target_prompt_logprobs")
    if tensor is None:
        return None
    return {name: tensor.get(name) for name in ("shape", "sparse_crow_indices", "sparse_col_indices")}


def _stops(stop: Any) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """None stops at the end of the text, an empty list never; texts stop additionally, ids instead."""
    if stop is None:
        return (), None
    if isinstance(stop, str):
        return (stop,), None
    stop = wire.sequence(stop, "stop")
    if all(isinstance(text, str) for text in stop) and stop:
        if not all(stop):
            raise DataError("stop", "an empty text", action="leave it out")
        return tuple(stop), None
    return (), tuple(whole(id_, "stop", 0) for id_ in stop)


def prompt(request: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt.

    Raises:
        DataError: it is invalid, or holds something other than text.
    """
    chunks = wire.sequence(wire.mapping(request.get("prompt"), "prompt").get("chunks"), "prompt.chunks")
    tokens: list[int] = []
    for n, chunk in enumerate(chunks):
        chunk = wire.mapping(chunk, f"prompt.chunks[{n}]")
        kind = chunk.get("type", "encoded_text")
        if kind != "encoded_text":
            raise DataError(
                f"prompt.chunks[{n}]", f"{kind} is not offered, sampling reads text alone", action="send text chunks"
            )
        ids = wire.sequence(chunk.get("tokens"), f"prompt.chunks[{n}].tokens")
        tokens += [whole(token, f"prompt.chunks[{n}].tokens", 0) for token in ids]
    if not tokens:
        raise DataError("prompt", "it is empty", action="begin it with at least one token")
    return tokens


def whole(value: Any, name: str, least: int | None) -> int:
    """The value, a whole number.

    Raises:
        DataError: it is not one, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise DataError(name, f"{value!r}", action="give a whole number" + ("" if least is None else f" from {least}"))
    return value


def _at_least(value: Any, name: str, least: float) -> float:
    checked = wire.number(1.0 if value is None else value, name)
    if checked < least:
        raise DataError(name, f"{checked} is below {least}", action="give a larger number")
    return checked
