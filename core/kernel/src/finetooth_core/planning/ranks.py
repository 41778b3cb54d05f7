"""Several ranks that train one run: this process's place, the launcher of the others, and checks that all are equal.

Every rank runs the same recipe from beginning to end. Rank 0 writes the run folder and the user's output; the others
use temporary folders.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.compute.backends import HardwareFacts, PlacePart
from finetooth_hooks.compute.strategies import Rank
from finetooth_hooks.entries import Backend, Launcher
from finetooth_hooks.errors import PlanError, PluginError
from finetooth_recipes.recipe_picks import AUTO
from finetooth_saving.runs.closed_network import is_closed, run_closed

from finetooth_core.planning.joined import JoinedRank
from finetooth_core.settings.picked_options import check_picked_options

if TYPE_CHECKING:
    from finetooth_core.planning.context import RunContext
    from finetooth_core.settings.recipe import Recipe


def wanted(recipe: Recipe) -> int:
    """The recipe's number of ranks, by default one per machine."""
    devices = recipe.scale.devices
    return recipe.scale.nodes * (devices if isinstance(devices, int) else 1)


def started_by(context: RunContext) -> list[Any]:
    """Launchers that have started this process."""
    return [r for r in context.catalog.all("launcher") if isinstance(r.entry, Launcher) and r.entry.here()]


def join(context: RunContext) -> JoinedRank | Callable[[Sequence[str]], int] | None:
    """This process as a rank; or the launcher, if it was not started as one; None for a single process.

    Raises:
        PlanError: the started ranks are not the recipe's.
    """
    recipe, catalog = context.recipe, context.catalog
    if recipe.data.no_egress and not is_closed():
        return run_closed
    count, around = wanted(recipe), started_by(context)
    pick: Any = recipe.scale.launcher
    named = pick if isinstance(pick, str) else str(pick["name"])
    if count <= 1 and not around:
        if named != AUTO and "machines" in vars(catalog.get("launcher", named).entry)["capabilities"]:
            action = "set scale.devices to several, or scale.launcher: auto to train here"
            raise PlanError(f"scale.launcher: {named} starts several ranks, and the recipe has one", action=action)
        return None
    if around and (named == AUTO or catalog.get("launcher", named) not in around):
        pick = around[0].full_name  # the launcher that started this process knows its place
    picked = context.builder.section("launcher", pick, "scale.launcher")
    launcher, nodes = picked.part, recipe.scale.nodes
    rank: Rank | None = launcher.rank()
    if rank is None:
        check_picked_options(recipe, catalog, "", data=False)
        if "machines" in vars(picked.registered.entry)["capabilities"]:
            return lambda command: int(launcher.start(count, command, nodes=nodes))
        if nodes > 1:
            problem = f"scale.nodes is {nodes}, and {picked.registered.full_name} starts ranks on this machine alone"
            action = "set scale.launcher to one that starts several (ft plugins list), or use torchrun"
            raise PlanError(problem, action=action)
        return lambda command: int(launcher.start(count, command))
    if isinstance(recipe.scale.devices, int) and count != rank.world:
        problem = f"scale asks for {count} ranks, and {rank.world} were started"
        raise PlanError(problem, action="leave scale.devices out, or start as many")
    return _joined(context, rank)


def _joined(context: RunContext, rank: Rank) -> JoinedRank:
    pick: Any = context.recipe.scale.strategy
    if pick == AUTO:
        pick = context.catalog.default("strategy", setting="scale.strategy").full_name
    built = context.builder.build("strategy", pick, setting="scale.strategy")
    words = vars(built.registered.entry)["capabilities"] | getattr(built.part, "capabilities", frozenset())
    return JoinedRank(rank, built.part, built.registered.full_name, words)


def check_started(recipe: Recipe, joined: JoinedRank | None) -> None:
    """Check that the recipe's number of ranks was started.

    Raises:
        PlanError: the recipe has several ranks, and this process trains alone; or ranks do not support a setting.
    """
    if joined is None and wanted(recipe) > 1:
        action = "start it with ft run, which starts the others, or set scale.devices: 1"
        raise PlanError(f"scale asks for {wanted(recipe)} ranks, and this process is one", action=action)
    if joined is not None and recipe.checkpoint.stores != AUTO:
        raise PlanError(
            "checkpoint.stores: where several ranks train, checkpoints lie in the run folder", action="leave it out"
        )


@contextmanager
def among(joined: JoinedRank, folder: Path) -> Iterator[None]:
    """Inside the `with` block, this process trains with the others.

    Args:
        folder: its working folder; removed afterwards, unless it is the run folder.
    """
    try:
        yield
    finally:
        if joined.collective is not None:
            joined.strategy.close()
        if not joined.writes:
            shutil.rmtree(folder.parent, ignore_errors=True)


def place_of(context: RunContext, hardware: HardwareFacts, backend: Backend) -> PlacePart:
    """The engine's device and ranks. In a process that is not one of the recipe's ranks, those of rank 0, without a
    line to others.

    Raises:
        PlanError: engines of the backend do not support ranks.
    """
    place = PlacePart(hardware, seed=int(context.generator("engine").integers(2**31)))
    count, strategy = wanted(context.recipe), context.recipe.scale.strategy
    if context.joined is None and count <= 1:
        if strategy != AUTO:
            with suppress(PlanError, PluginError):  # its options count; one process does not need its library
                context.build("strategy", strategy, setting="scale.strategy")
        if strategy != AUTO and context.recipe.scale.devices == AUTO:
            context.note("one process trains, so scale.strategy has nothing to divide: set scale.devices to several")
        return place
    joined = context.joined or _joined(context, Rank(0, count, 0, "", 0))
    if "ranks" not in backend.capabilities:
        action = "set scale.devices: 1, or backend: torch"
        raise PlanError(f"scale: engines of the backend {backend.name} train alone", action=action)
    if len(hardware.devices) > 1:
        hardware = hardware.only(joined.rank.local % len(hardware.devices))
    built: Any = joined.strategy
    line, world = None, joined.rank.world
    if context.joined is not None:
        joined.collective = joined.collective or built.open(joined.rank, hardware.device)
        line = built.island() if "islands" in joined.words else joined.collective
    context.decide("scale.ranks", str(world), f"one engine over {world} ranks by {joined.name}")
    cut = built.sharding(world) if "shards" in joined.words else None
    spread = built.shard_optimizer if "optimizer" in joined.words else None
    return replace(place, hardware=hardware, collective=line, wrap=built.wrap, sharding=cut, shard_optimizer=spread)


def digest(value: Any) -> str:
    """SHA-256 of something JSON-able."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
