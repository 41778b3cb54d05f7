"""Sampling from weights that were saved: one engine for each base and shape of adapter, calls computed together."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import CommandContext, Completion, Datum, Engine, Sampling, wire
from sqlalchemy import insert, select

from finetooth_server.encryption.vault import Vault
from finetooth_server.live import LiveModel
from finetooth_server.operations import likeliest
from finetooth_server.records import Records, now, samplers


class Samplers:
    """Engines that only sample. They take whatever weights the next calls want."""

    def __init__(self, context: CommandContext, vault: Vault) -> None:
        self._context, self._vault = context, vault
        self._engines: dict[str, tuple[Engine, Path]] = {}
        self._holds: dict[str, str] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="finetooth-samplers-")

    def engine(self, recipe: Mapping[str, Any], weights: Path | None) -> Engine:
        """The engine for a recipe's model, with these weights; None is the base as it was."""
        key = _shape(recipe)
        if key not in self._engines:
            engine = self._context.engine(recipe)
            fresh = Path(self._scratch.name) / key
            engine.export(fresh)
            self._engines[key] = engine, fresh
            self._holds[key] = str(fresh)
        engine, fresh = self._engines[key]
        wanted = weights or fresh
        if self._holds[key] != str(wanted):
            self._holds[key] = ""  # half restored weights are nobody's
            with self._vault.reading(wanted) as folder:
                engine.restore(folder)
            self._holds[key] = str(wanted)
        return engine

    def close(self) -> None:
        """Drop the engines."""
        self._engines.clear()
        self._scratch.cleanup()


def sample(engine: Engine, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Compute calls that want the same sampling of the same weights, together.

    Args:
        calls: arguments of each: `prompt`, `sampling`, and optionally `prompt_logprobs`, `top_k_prompt_logprobs`.

    Returns:
        For each call its completions, and what it asked of its prompt.
    """
    sampling = wire.decode_sampling(calls[0]["sampling"])
    results: list[Any] = [None] * len(calls)
    for wave in _waves(calls):
        prompts = [calls[place]["prompt"] for place in wave]
        for place, completions in zip(wave, _generate(engine, prompts, sampling), strict=True):
            results[place] = {"completions": [wire.encode_completion(one) for one in completions]}
    for result, arguments in zip(results, calls, strict=True):
        if arguments.get("prompt_logprobs"):
            result["prompt_logprobs"] = wire.encode_array(prompt_logprobs(engine, arguments["prompt"]))
        top = int(arguments.get("top_k_prompt_logprobs") or 0)
        if top:
            result.update(_top(engine, arguments["prompt"], top))
    return results


def open_sampler(records: Records, id_: str, tenant: str, session: str, base: str, checkpoint: str | None) -> None:
    """Make weights available for sampling under an id; the same id again changes nothing.

    Args:
        checkpoint: id of what `save` wrote; None is the base model itself.
    """
    row = {
        "id": id_,
        "tenant": tenant,
        "session": session,
        "base": base,
        "checkpoint": checkpoint,
        "created": now(),
    }
    with records.write() as connection:
        if connection.execute(select(samplers.c.id).where(samplers.c.id == id_)).first() is None:
            connection.execute(insert(samplers).values(row))


def batch_key(checkpoint: str | None, base: str, arguments: Mapping[str, Any], *, seeded: bool) -> str:
    """Equal for calls that `sample` can take together.

    Args:
        seeded: the client chose the seed, so the call's own seed counts.
    """
    sampling = dict(arguments["sampling"])
    if not seeded:
        sampling.pop("seed", None)
    text = json.dumps([checkpoint, base, sampling, seeded], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_logprobs(engine: Engine, prompt: Sequence[int]) -> np.ndarray:
    """(N,) float32 log-probability of each token of a prompt after those before it; NaN for the first."""
    if len(prompt) < 2:
        return np.full(len(prompt), np.nan, np.float32)
    scores = engine.logprobs([Datum.from_tokens(list(prompt))])[0]
    return np.concatenate([[np.nan], scores]).astype(np.float32)


def _top(engine: Engine, prompt: Sequence[int], top: int) -> dict[str, Any]:
    """Likeliest tokens at each place of a prompt; the first has none."""
    ids, scores = np.zeros((len(prompt), top), np.int64), np.full((len(prompt), top), -99999.0, np.float32)
    if len(prompt) > 1:
        model = LiveModel("", engine, lambda pick: None)  # type: ignore[arg-type,return-value]
        found, of = likeliest(model, Datum.from_tokens(list(prompt)), top)
        ids[1:, : found.shape[1]], scores[1:, : found.shape[1]] = found, of
    return {"top_tokens": wire.encode_array(ids), "top_logprobs": wire.encode_array(scores)}


def _generate(engine: Engine, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[Completion]]:
    if sampling.max_tokens > 0:
        return engine.generate(prompts, sampling)
    nothing = Completion((), (), "", "length", engine.weights_version)
    return [[replace(nothing) for _ in range(sampling.n)] for _ in prompts]


def _waves(calls: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Places of calls that go in one batch. A seed gives the same tokens whatever else is in the batch, but equal
    prompts in one batch get different ones; so where the client chose the seed, equal prompts go apart."""
    if not calls[0].get("seeded"):
        return [list(range(len(calls)))]
    waves: list[list[int]] = []
    seen: list[set[tuple[int, ...]]] = []
    for place, arguments in enumerate(calls):
        prompt = tuple(arguments["prompt"])
        free = next((n for n, prompts in enumerate(seen) if prompt not in prompts), None)
        if free is None:
            waves.append([])
            seen.append(set())
            free = len(waves) - 1
        waves[free].append(place)
        seen[free].add(prompt)
    return waves


def _shape(recipe: Mapping[str, Any]) -> str:
    """Recipes with the same text here can use one another's engine."""
    chosen = {name: recipe.get(name) for name in ("model", "adapter", "backend", "plugins")}
    chosen["precision"] = (recipe.get("train") or {}).get("precision")
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:32]
