"""The launcher `ray`."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from finetooth_hooks import PlanError
from finetooth_launching.ranks import RankStarter, carried, interrupts, variables, wait
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from finetooth_raylauncher.actor import RankActor
from finetooth_raylauncher.options import RayOptions

PAUSE = 0.25
"""Seconds between two questions to the actors."""


class RemoteRank:
    """A rank in an actor. Implements `finetooth_launching.ranks.Started`.

    Args:
        speaks: what the rank writes appears here.
    """

    def __init__(self, actor: Any, *, speaks: bool) -> None:
        self._actor, self._speaks = actor, speaks
        self._signals: list[int] = []

    def poll(self) -> int | None:
        """See `Started`. An actor that is lost counts as killed."""
        try:
            while self._signals:
                ray.get(self._actor.send.remote(self._signals.pop(0)))
            code, output = ray.get(self._actor.poll.remote())
        except RayActorError:
            return -signal.SIGKILL
        if self._speaks and output:
            sys.stdout.buffer.write(output)
            sys.stdout.flush()
        return int(code) if code is not None else None

    def interrupt(self) -> None:
        """Send the signal of the interrupt key at the next `poll`; a handler of signals may call this."""
        self._signals.append(signal.SIGINT)

    def terminate(self) -> None:
        """See `Started`."""
        self._signals.append(signal.SIGTERM)

    def kill(self) -> None:
        """See `Started`."""
        try:
            ray.get(self._actor.kill.remote())
        except RayActorError:
            return
        ray.kill(self._actor)

    def last_line(self) -> str:
        """See `Started`."""
        try:
            return str(ray.get(self._actor.last_line.remote()))
        except RayActorError:
            return ""


class RayLauncher(RankStarter):
    """Implements `finetooth_hooks.protocols.MachinesLauncher`."""

    name = "ray"

    def __init__(self, options: RayOptions, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self._options = options

    def start(self, world: int, command: Sequence[str], *, nodes: int = 1) -> int:
        """See `finetooth_hooks.protocols.MachinesLauncher`. The interrupt key reaches rank 0.

        Raises:
            PlanError: no cluster answers, it has no room, or a machine cannot start a rank.
        """
        self._join()
        try:
            actors = self._actors(world, nodes)
            self._start_all(actors, command, world // nodes)
            ranks = [RemoteRank(actor, speaks=number == 0) for number, actor in enumerate(actors)]
            with interrupts(ranks[0].interrupt):
                return wait(ranks, self._options.grace, pause=PAUSE)
        finally:
            ray.shutdown()

    def _join(self) -> None:
        """Connect to the cluster."""
        address = self._options.address
        if address == "auto":
            address = self._environment.get("RAY_ADDRESS", address)
        host, colon, port = address.rpartition(":")
        try:
            if colon and port.isdecimal() and "://" not in host:
                socket.create_connection((host, int(port)), timeout=10).close()  # Ray tries for minutes
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, ValueError) as error:
            line = next(iter(str(error).splitlines()), "")
            raise PlanError(
                f"scale.launcher: no Ray cluster answers at {address}: {line}",
                action="start one with ray start --head, or give the launcher its address",
            ) from error

    def _actors(self, world: int, nodes: int) -> list[Any]:
        """An actor for each rank, those of a machine after each other."""
        have = ray.cluster_resources()
        gpus = self._options.gpus_per_rank
        needs = {"CPU": self._options.cpus_per_rank, "GPU": float("GPU" in have) if gpus == "auto" else gpus}
        local = world // nodes
        bundle = {name: count * local for name, count in needs.items() if count}
        group = placement_group([bundle] * nodes, strategy="STRICT_SPREAD" if nodes > 1 else "STRICT_PACK")
        if not group.wait(self._options.patience):
            wanted = ", ".join(f"{count:g} {name}" for name, count in bundle.items())
            there = ", ".join(f"{have.get(name, 0):g} {name}" for name in bundle)
            raise PlanError(
                f"scale.launcher: the Ray cluster has no room for {nodes} machines with {wanted} each after "
                f"{self._options.patience:g} s; all of it has {there}",
                action="ask for fewer ranks, or set cpus_per_rank and gpus_per_rank",
            )
        kind = ray.remote(RankActor)
        places = [PlacementGroupSchedulingStrategy(group, rank // local) for rank in range(world)]
        return [
            kind.options(num_cpus=needs["CPU"], num_gpus=needs["GPU"], scheduling_strategy=place).remote()
            for place in places
        ]

    def _start_all(self, actors: Sequence[Any], command: Sequence[str], local: int) -> None:
        machines = ray.get([actor.machine.remote() for actor in actors])
        address = machines[0]
        port = ray.get(actors[0].port.remote(address))
        world, unbuffered = len(actors), {"PYTHONUNBUFFERED": "1"}
        answers = [
            actor.start.remote(
                list(command),
                {**unbuffered, **carried(self._environment), **variables(rank, world, rank % local, address, port)},
                str(Path.cwd()),
            )
            for rank, actor in enumerate(actors)
        ]
        for rank, fault in enumerate(ray.get(answers)):
            if fault:
                raise PlanError(
                    f"scale.launcher: rank {rank} does not start at {machines[rank]}: {fault}",
                    action="give every machine the same folders and the same installation",
                )
