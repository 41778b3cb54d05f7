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
        lines += [""]
    for key in ("adapters", "adapters_on_one_thread"):
        lines += [*_adapters(file[key]), ""] if key in file else []
    return "\n".join(lines if not lines[-1] else [*lines, ""])


def _adapters(found: Mapping[str, Any]) -> list[str]:
    """Many adapters at once, in one batch and in turns."""
    cases = {
        "one request": "one request",
        "one adapter": f"{found['adapters']} requests of one adapter",
        "every adapter": f"a request of each of {found['adapters']} adapters",
    }
    rates = found["tokens_per_second"]
    by = found.get("compared", "by_processor_time")
    of = "of processor time on one thread" if by == "by_processor_time" else f"on {found['threads']} threads"
    wrong = found["other_tokens_than_alone"]
    return [
        f"LoRAs of rank {found['rank']} on one base ({found['model']}), {found['tokens']} tokens a request, sampled "
        f"through one server that writes them in one batch, and one that gives each adapter its turns; tokens a second "
        f"{of}, medians of {found['rounds']} rounds in turns. Other tokens than alone: "
        f"{wrong or 'none'}. {found['adapters']} adapters get {found['times_one_request']:.1f} times the tokens of one "
        f"request (the goal is {found['goal']:g}), and {100 * found['share_of_one_adapter']:.0f} % of those of one "
        "adapter's requests.",
        "",
        "| Sampled at once | In one batch | In turns |",
        "|---|---|---|",
        *(
            f"| {text} | {rates['together'][case][by]:,.0f} | {rates['in turns'][case][by]:,.0f} |"
            for case, text in cases.items()
        ),
    ]
