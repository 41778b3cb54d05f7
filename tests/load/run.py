"""`make load`: many clients of several tenants train and sample on one server, which is killed again and again. Writes
tests/bench/results/service.json; exit code 1 if a call was lost or done twice, if a result is not a local engine's, or
if a tenant read what is another's.

    python tests/load/run.py [--clients 100] [--seconds 300] [--kills 5] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import numpy as np
from clients import Prober, Sampled, Timed, Trainer, make_client  # type: ignore[import-not-found]
from harness import RESULTS  # type: ignore[import-not-found]
from harness.machine import machine  # type: ignore[import-not-found]
from server import TENANTS, Server, make_keys, make_model  # type: ignore[import-not-found]
from truth import futures, gradients, samples  # type: ignore[import-not-found]

TRAINERS = 0.4
"""Share of the clients that train; a tenant may have 16 models at most."""
GROWTH = 1.25
"""Memory is steady if a process's last third takes at most so much more than its middle third."""
SETTLED = 20.0
"""Seconds after which a process has models and caches in memory."""


def main() -> int:
    """Load the server, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "service.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetooth-load-") as folder:
        found = asyncio.run(load(Path(folder), given.clients, given.seconds, given.kills))
    wrong = {
        "lost futures": found["futures"]["lost"],
        "doubled futures": found["futures"]["doubled"],
        "results that are not a local engine's": found["gradients"]["wrong"],
        "completions that are not a local engine's": found["samples"]["wrong"],
        "reads across tenants": found["across_tenants"]["read"],
        "clients that failed": len(found["failed_clients"]),
        "memory that grows": found["memory"]["steady"] is False,
    }
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    for name, count in wrong.items():
        print(f"{name}: {int(count)}")
    return int(any(wrong.values()))


async def load(folder: Path, clients: int, seconds: float, kills: int) -> dict[str, Any]:
    """The whole of it."""
    model = folder / "model"
    make_model(model)
    keys = make_keys(folder / "server")
    share = round(clients * TRAINERS)
    server = Server(model, folder / "server", keys[TENANTS[0]], live=share + 4)
    database = folder / "server" / "service.db"
    await server.start()
    timed, begun = Timed(), time.monotonic()
    end = begun + seconds
    trainers = [Trainer(TENANTS[n % len(TENANTS)], n) for n in range(share)]
    sampled = [Sampled(TENANTS[n % len(TENANTS)], n) for n in range(clients - share)]
    probers = [Prober(tenant, keys[tenant]) for tenant in TENANTS]
    connections = [make_client(server.url, keys[one.tenant]) for one in (*trainers, *sampled)]
    tasks = [
        asyncio.create_task(one.run(client, str(model), timed, end))
        for one, client in zip((*trainers, *sampled), connections, strict=True)
    ]
    probing = [asyncio.create_task(one.run(server.url, database, end)) for one in probers]
    watching = asyncio.create_task(server.watch())
    for n in range(kills):
        await asyncio.sleep(max(0.0, begun + seconds * (n + 1) / (kills + 1) - time.monotonic()))
        await server.kill()
    failed = [error for error in await asyncio.gather(*tasks, return_exceptions=True) if error is not None]
    await asyncio.gather(*probing)
    watching.cancel()
    took = time.monotonic() - begun
    for client in connections:
        await client.close()
    server.stop()
    queues = {one.session.id: one.calls for one in trainers if one.session is not None}
    queues |= {f"sampler:{one.sampler.id}": one.calls for one in sampled if one.sampler is not None}
    context, recipe = local(model)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "clients": clients,
        "tenants": len(TENANTS),
        "trainers": share,
        "seconds": round(took, 1),
        "kills": len(server.outages),
        "longest_outage_seconds": round(max((b - a for a, b in server.outages), default=0.0), 2),
        "futures": futures(database, queues),
        "gradients": gradients(context, recipe, trainers),
        "samples": samples(context, recipe, sampled, 400),
        "across_tenants": {
            "tried": sum(one.tried for one in probers),
            "read": sum(len(one.read) for one in probers),
            "let_through": [path for one in probers for path in one.read][:10],
        },
        "milliseconds": latencies(timed, server.outages),
        "memory": memory(server.memory),
        "failed_clients": [f"{type(error).__name__}: {error}"[:300] for error in failed],
    }


def latencies(timed: Timed, outages: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Of calls under load by primitive, those left out that met an outage."""
    found = {}
    for name, spans in sorted(timed.spans.items()):
        calm = [1000 * (b - a) for a, b in spans if not any(a < end and b > begun for begun, end in outages)]
        p50, p99 = np.percentile(calm, (50, 99)) if calm else (0.0, 0.0)
        found[name] = {"calls": len(spans), "p50": round(float(p50), 1), "p99": round(float(p99), 1)}
    return found


def memory(processes: list[list[tuple[float, int]]]) -> dict[str, Any]:
    """Resident bytes at the peak of each process, and whether the longest-lived one grew."""
    longest = [one for one in max(processes, key=len) if one[0] > SETTLED]
    third = len(longest) // 3
    steady = None  # too short a time to say
    if third >= 5:
        middle, last = ([size for _, size in part] for part in (longest[third : 2 * third], longest[2 * third :]))
        steady = float(np.median(last)) <= GROWTH * float(np.median(middle))
    return {"peak_bytes": [max((size for _, size in one), default=0) for one in processes], "steady": steady}


def local(model: Path) -> tuple[Any, dict[str, Any]]:
    """How engines are made here, and the recipe that the server serves."""
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State

    context = State(StartOptions())
    recipe = dict(context.load({"model": str(model)}, ("train.precision=fp32",)))
    return context, {**recipe, "train": {**recipe.get("train", {}), "max_length": 256}}


if __name__ == "__main__":
    sys.exit(main())
