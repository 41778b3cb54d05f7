"""Low-rank adapters on one base, sampled in one batch: each base has one engine, which holds them.

Its own weights are never sampled, and never change: what is held is what it was read as, even if training continues.
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
    """Only the writer's thread calls it.

    Args:
        vault: reads weights.
        most: bytes of adapters that are held; the one that was not asked for for longest goes first. 0: none are.
    """

    def __init__(self, context: CommandContext, vault: Vault, most: int) -> None:
        self._context, self._vault, self._most = context, vault, most
        self._engines: dict[str, Engine] = {}
        self._alone: set[str] = set()
        self._held: OrderedDict[tuple[str, str], HeldAdapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def together(self, recipe: Mapping[str, Any]) -> str:
        """Equal for recipes whose adapters may be sampled in one batch; empty if that one's may not."""
        return "" if self._most <= 0 or shape_of(recipe) in self._alone else _base(recipe)

    def hold(self, recipe: Mapping[str, Any], weights: Stack) -> tuple[Engine, HeldAdapter] | None:
        """The engine of a recipe's base, and the weights as it holds them; None where they have to be sampled alone.

        Args:
            weights: artifacts, whose weighted sum is wanted; none is the base as it was.

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
            self._held.popitem(last=False)  # rows that are written with it keep it until they are done
        return host, self._held[key]

    def close(self) -> None:
        """Drop the engines and what they hold."""
        self._engines.clear()
        self._held.clear()

    def _read(self, host: Engine, weights: Stack) -> HeldAdapter | None:
        if not weights:
            return host.hold(None)
        with ExitStack() as opened:
            return host.hold([(opened.enter_context(self._vault.reading(path)), weight) for path, weight in weights])


def _base(recipe: Mapping[str, Any]) -> str:
    """Recipes with the same text here have one base, and one kind of adapter."""
    adapter = recipe.get("adapter")
    return shape_of({**recipe, "adapter": adapter.get("name") if isinstance(adapter, Mapping) else adapter})


def shape_of(recipe: Mapping[str, Any]) -> str:
    """Recipes with the same text here can use one another's engine: their adapters have one shape."""
    chosen = {name: recipe.get(name) for name in ("model", "adapter", "backend", "plugins")}
    chosen["precision"] = (recipe.get("train") or {}).get("precision")
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:32]
