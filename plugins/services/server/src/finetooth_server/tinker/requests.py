"""The Tinker wire's JSON requests in the service's words."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from finetooth_hooks import DataError, Sampling, UserError
from finetooth_hooks.engine import StepSettings
from finetooth_toolbox import wire

ALPHA = 32.0
"""LoRA's alpha, which is not on the wire; other servers of it take the same."""

LONGEST = 32768
"""New tokens where the client sets no bound; the model's own length ends them earlier."""

_ADAM = {"eps": "eps", "weight_decay": "weight_decay"}


def sections(request: Mapping[str, Any], template: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe that `create_model` asks for.

    Args:
        template: the recipe under which the server offers the base model.

    Raises:
        UserError: something that is not offered.
    """
    lora = request.get("lora_config")
    found: dict[str, Any] = {"schedule": "constant", "train": {"max_grad_norm": 0.0}}
    if lora is not None:
        lora = wire.mapping(lora, "lora_config")
        rank = _whole(lora.get("rank"), "lora_config.rank", 0)
        found["adapter"] = "full" if rank == 0 else _lora(lora, rank, template)
        if lora.get("seed") is not None:
            found["train"]["seed"] = _whole(lora["seed"], "lora_config.seed", 0)
    optimizer = wire.mapping(request.get("optimizer_config") or {"type": "adamw"}, "optimizer_config")
    options = {name: value for name, value in optimizer.items() if name != "type"}
    found["optimizer"] = {"name": str(optimizer.get("type") or "adamw"), **options}
    return found


def _lora(lora: Mapping[str, Any], rank: int, template: Mapping[str, Any]) -> dict[str, Any]:
    given = template.get("adapter")
    options = {k: v for k, v in given.items() if k not in ("name", "rank")} if isinstance(given, Mapping) else {}
    if not lora.get("train_attn", True):
        raise UserError("lora_config.train_attn: false is not offered", action="leave it true")
    if not lora.get("train_mlp", True):
        options["targets"] = "attention"
    return {"alpha": ALPHA, **options, "name": "lora", "rank": rank}


def step_settings(request: Mapping[str, Any]) -> StepSettings:
    """Numbers of `optim_step`.

    Raises:
        DataError: they are none.
    """
    adam = request.get("adam_params")
    given = wire.mapping(adam if adam is not None else request.get("optimizer_params"), "adam_params")
    numbers = {name: wire.number(value, name) for name, value in given.items() if name != "type" and value is not None}
    if adam is not None:
        numbers = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, **numbers}
    rate, norm = numbers.pop("learning_rate", None), numbers.pop("grad_clip_norm", 0.0)
    options: dict[str, float | tuple[float, ...]] = {}
    if "beta1" in numbers and "beta2" in numbers:
        options["betas"] = (numbers.pop("beta1"), numbers.pop("beta2"))
    return StepSettings(rate, max(0.0, norm), {**options, **numbers})


def sampling(request: Mapping[str, Any]) -> tuple[Sampling, bool]:
    """How `asample` wants to sample, and whether it chose the seed.

    Raises:
        DataError: a setting is no number or no text.
    """
    given = wire.mapping(request.get("sampling_params") or {}, "sampling_params")
    stop, ids = _stops(given.get("stop"))
    seed = given.get("seed")
    top_k = given.get("top_k")
    most = given.get("max_tokens")
    return Sampling(
        max_tokens=LONGEST if most is None else _whole(most, "max_tokens", 1),
        temperature=_at_least(given.get("temperature", 1.0), "temperature", 0.0),
        top_k=max(0, _whole(-1 if top_k is None else top_k, "top_k", -1)),
        top_p=wire.number(1.0 if given.get("top_p") is None else given["top_p"], "top_p"),
        n=_whole(request.get("num_samples", 1), "num_samples", 1),
        stop=stop,
        stop_ids=ids,
        seed=secrets.randbits(62) if seed is None else _whole(seed, "seed", None),
    ), seed is not None


def _stops(stop: Any) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """None stops at the end of the text, an empty list never; texts stop in addition to it, ids in its place."""
    if stop is None:
        return (), None
    if isinstance(stop, str):
        return (stop,), None
    stop = wire.sequence(stop, "stop")
    if all(isinstance(one, str) for one in stop) and stop:
        if not all(stop):
            raise DataError("stop", "an empty text", action="leave it out")
        return tuple(stop), None
    return (), tuple(_whole(one, "stop", 0) for one in stop)


def prompt(request: Mapping[str, Any]) -> list[int]:
    """Token ids of a prompt.

    Raises:
        DataError: it is none, or holds something other than text.
    """
    chunks = wire.sequence(wire.mapping(request.get("prompt"), "prompt").get("chunks"), "prompt.chunks")
    tokens: list[int] = []
    for n, chunk in enumerate(chunks):
        chunk = wire.mapping(chunk, f"prompt.chunks[{n}]")
        if chunk.get("type", "encoded_text") != "encoded_text":
            raise DataError(f"prompt.chunks[{n}]", "only text is taken here", action="send text chunks")
        ids = wire.sequence(chunk.get("tokens"), f"prompt.chunks[{n}].tokens")
        tokens += [_whole(one, f"prompt.chunks[{n}].tokens", 0) for one in ids]
    if not tokens:
        raise DataError("prompt", "it is empty", action="begin it with at least one token")
    return tokens


def _whole(value: Any, name: str, least: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        raise DataError(name, f"{value!r}", action="give a whole number" + ("" if least is None else f" from {least}"))
    return value


def _at_least(value: Any, name: str, least: float) -> float:
    found = wire.number(1.0 if value is None else value, name)
    if found < least:
        raise DataError(name, f"{found} is below {least}", action="give a larger number")
    return found
