"""Low-rank adapters on one base, sampled in one batch: each base has one engine that holds them.

Its own weights are never sampled and never change; held adapters do not change if training continues.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from finetooth_hooks import CommandContext, Engine
from finetooth_hooks.compute.held import HeldAdapter, Stack

from finetooth_server.encryption.vault import Vault

NEEDED = {"adapters", "continuous"}


class Hosts:
    """Holds adapters; only the writer's thread calls it.

    Args:
        vault: reads weights.
        most: bytes of held adapters; the least recently used one is dropped. 0: none are held.
    """

    def __init__(self, context: CommandContext, vault: Vault, most: int) -> None:
        self._context, self._vault, self._most = context, vault, most
        self._engines: dict[str, Engine] = {}
        self._alone: set[str] = set()
        self._held: OrderedDict[tuple[str, str], HeldAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def together(self, recipe: Mapping[str, Any]) -> str:
        """A key, equal for recipes whose adapters may share a batch; empty if this one's may not."""
        return "" if self._most <= 0 or shape_of(recipe) in self._alone else _base(recipe)

    def hold(self, recipe: Mapping[str, Any], weights: Stack) -> tuple[Engine, HeldAdapter] | None:
        """The engine of a recipe's base, and the held weights; None if they must be sampled alone.

        Args:
            weights: artifacts of a weighted sum; empty: the unchanged base.

        Raises:
            FinetoothError: the engine cannot be built, or the weights cannot be read.
        """
        base = self.together(recipe)
        if not base:
            return None
        if base not in self._engines:
            engine = self._context.engine(recipe)
            if not engine.capabilities >= NEEDED:
                self._alone.add(shape_of(recipe))
                return None
            self._engines[base] = engine
        host, key = self._engines[base], (base, json.dumps([[str(path), weight] for path, weight in weights]))
        if key not in self._held:
            adapter = self._read(host, weights)
            if adapter is None:
                return None
            self._held[key] = adapter
        self._held.move_to_end(key)
        while len(self._held) > 1 and sum(adapter.size for adapter in self._held.values()) > self._most:
            self._held.popitem(last=False)  # running rows keep it until they finish
        return host, self._held[key]

    def close(self) -> None:
        """Drop the engines and their adapters."""
        self._engines.clear()
        self._held.clear()

    def _read(self, host: Engine, weights: Stack) -> HeldAdapter | None:
        if not weights:
            return host.hold(None)
        with ExitStack() as opened:
            return host.hold([(opened.enter_context(self._vault.reading(path)), weight) for path, weight in weights])


def _base(recipe: Mapping[str, Any]) -> str:
    """A text, equal for recipes with the same base and kind of adapter."""
    adapter = recipe.get("adapter")
    return shape_of({**recipe, "adapter": adapter.get("name") if isinstance(adapter, Mapping) else adapter})


def shape_of(recipe: Mapping[str, Any]) -> str:
    """A text, equal for recipes that can share an engine: their adapters have one shape."""
    chosen = {name: recipe.get(name) for name in ("model", "adapter", "backend", "plugins")}
    chosen["precision"] = (recipe.get("train") or {}).get("precision")
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:32]
