"""A registry of 100,000 versions and 1,000,000 measurements: how long a list, a query and a promotion take.

    python tests/load/registry.py [--database postgresql://USER:${PASSWORD}@HOST/NAME] [--versions N]

Rows are written straight into the tables, in chained events as the registry itself logs them; each figure is a median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetooth_hooks import Verdict
from finetooth_registry import records
from finetooth_registry.anywhere import Event
from finetooth_registry.registry import Registry
from finetooth_registry.releasing import promote
from finetooth_registry.tables import EVENTS, MEASUREMENTS, VERSIONS
from sqlalchemy import insert

EACH = 100
"""Versions of a model."""
METRICS = 10
"""Measurements of a version."""
AT = "2026-01-01T00:00:00Z"
ABOUT = {"base_digest": "b", "recipe_sha256": "r", "data": {"train": "d"}, "classification": {"customer_data": False}}


def rows(versions: int, first: int, previous: str, record: str) -> Iterator[tuple[Any, Any, Any]]:
    """A version with its event and its measurements."""
    for count in range(versions):
        model, number = f"model-{count // EACH}", count % EACH
        said = {"model": model, "number": number, "record": record, "status": "registered", "metrics": {}}
        event = Event(first + count, AT, "registered", said, previous, "")
        previous = event.expected()
        about = {"model": model, "number": number, "record": record, "status": "registered", "reason": "", "added": AT}
        logged = {
            "sequence": event.sequence, "at": AT, "kind": event.kind, "detail": said, "previous": event.previous,
            "sha256": previous, "model": model,
        }  # fmt: skip
        measured = [
            {"model": model, "number": number, "metric": f"m{n}", "value": float(n), "answers": None, "at": AT}
            for n in range(METRICS)
        ]
        yield about, logged, measured


def fill(registry: Registry, versions: int, record: str) -> None:
    """Write versions in portions."""
    last = registry.events()[-1]
    portion: list[tuple[Any, Any, Any]] = []
    with registry._changing() as connection:
        for made in (*rows(versions, last.sequence + 1, last.sha256, record), None):
            if made is not None:
                portion.append(made)
            if portion and (made is None or len(portion) == 1000):
                connection.execute(insert(VERSIONS), [about for about, _, _ in portion])
                connection.execute(insert(EVENTS), [logged for _, logged, _ in portion])
                connection.execute(insert(MEASUREMENTS), [one for _, _, many in portion for one in many])
                portion = []


def median(does: Callable[[int], Any], times: int = 21) -> float:
    """Milliseconds."""
    taken = []
    for count in range(times):
        began = time.perf_counter()
        does(count)
        taken.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(taken), 2)


def measure(folder: Path, database: str, versions: int) -> dict[str, Any]:
    """Fill a new registry and time it."""
    registry = Registry.create(folder / "registry", database)
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    registry.trust("ci", records.make_key(folder / "ci.pem"))
    (folder / "weights").write_text("w")
    signer = records.load_signer(folder / "ci.pem")
    made = registry.add("bot", {"weights": folder / "weights"}, ABOUT, signer, metrics={"loss": 1.0})
    began = time.perf_counter()
    fill(registry, versions, made.record)
    filled = time.perf_counter() - began
    for _ in range(2):
        registry.add("released", {"weights": folder / "weights"}, ABOUT, signer, metrics={"loss": 1.0})
    commands: Any = SimpleNamespace()
    models = versions // EACH
    verdict = {"1 signed": Verdict(True, "signed by ci")}

    def decide(count: int) -> None:
        version = registry.version(f"model-{count % models}@v1")
        registry.decide(version, "staging", verdict, registry.in_channel(version.model, "staging"))

    began = time.perf_counter()
    registry.check_log()
    whole = time.perf_counter() - began

    def release(count: int) -> None:
        opened = Registry(folder / "registry")  # as each command does
        assert promote(commands, opened, opened.version(f"released@v{count % 2}"), "candidate")[0]
        opened.close()

    return {
        "database": "postgresql" if database else "sqlite",
        "versions": versions,
        "measurements": versions * METRICS,
        "filled_seconds": round(filled, 1),
        "list_newest_200_ms": median(lambda count: registry.versions(newest=200)),
        "list_model_ms": median(lambda count: registry.versions(f"model-{count % models}")),
        "query_version_ms": median(lambda count: registry.version(f"model-{count % models}@v7")),
        "query_metrics_ms": median(lambda count: registry.metrics(registry.version(f"model-{count % models}@v7"))),
        "promote_ms": median(decide),
        "check_new_events_ms": median(lambda count: registry.check_log(whole=False)),
        "release_by_command_ms": median(release),
        "check_whole_log_seconds": round(whole, 2),
    }


def main() -> int:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="")
    parser.add_argument("--versions", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        json.dump(measure(Path(place), given.database, given.versions), sys.stdout, indent=2)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
