"""The page's section on the service, from what `make load` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAME = "service"
"""Of the result file; it is no workload of the bench."""


def section(file: Mapping[str, Any] | None) -> str:
    """What came of the load, latencies by primitive, and what the service adds to a local engine's calls; empty without
    a file."""
    if not file:
        return ""
    lines = ["## The service", ""]
    if "futures" in file:
        lines += [
            f"{file['clients']} clients of {file['tenants']} tenants, {file['trainers']} of them training a tiny "
            f"random model each, on one server for {file['seconds']:.0f} s, killed {file['kills']} times "
            f"({file['longest_outage_seconds']:.0f} s until it answered again, at most): "
            f"{file['futures']['calls']:,} calls, {file['futures']['lost']} lost, {file['futures']['doubled']} "
            f"doubled; {file['gradients']['results']:,} training results and "
            f"{file['samples']['completions']:,} completions compared "
            f"with a local engine's, {file['gradients']['wrong'] + file['samples']['wrong']} different; "
            f"{file['across_tenants']['tried']:,} tries to read across tenants, {file['across_tenants']['read']} let "
            f"through. `make load` does it again. Latencies are those of so many clients on one machine, waiting and "
            "restarts included.",
            "",
            "| Call | Calls | p50, ms | p99, ms |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| {name} | {one['calls']:,} | {one['p50']:,.0f} | {one['p99']:,.0f} |"
            for name, one in file["milliseconds"].items()
        ]
        lines += [""]
    if "overhead" in file:
        lines += ["One client and the same engine called locally, by turns, medians:", ""]
        lines += ["| Call | Local, ms | Service, ms | Added, ms | Added |", "|---|---|---|---|---|"]
        lines += [
            f"| {name} | {one['local_ms']:,.0f} | {one['service_ms']:,.0f} | {one['added_ms']:+,.0f} "
            f"| {one['added_percent']:+.1f} % |"
            for name, one in file["overhead"].items()
        ]
    return "\n".join([*lines, ""])
