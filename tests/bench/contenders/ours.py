"""finetooth trains, driven as `ft run` drives it, without trackers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from meter import Meter, rows_digest
from peer_rows import RATES

PREFERENCE = ("dpo", "rm")
"""Methods on pairs."""


def recipe(spec: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a training spec."""
    pretrain = spec.get("method") == "pretrain"
    data: dict[str, Any] = {"train": spec["text_file"] if pretrain else spec["rows_file"]}
    adapter = {"name": "lora", "rank": 16, "alpha": 32} if spec["adapter"] == "lora" else "full"
    train = {
        "batch_size": spec["batch_size"],
        "shuffle": False,
        "precision": spec["precision"],
        "max_length": spec.get("length", 512),
        "seed": 0,
    }
    if spec.get("micro_batch_tokens"):
        train["micro_batch_tokens"] = spec["micro_batch_tokens"]
    if pretrain:
        train["max_steps"] = -(-spec["windows"] // spec["batch_size"])
    return {
        "model": spec["model_folder"],
        "data": data,
        "method": spec.get("method", "sft"),
        "adapter": adapter,
        "optimizer": {"name": "adamw", "learning_rate": RATES[spec["adapter"]], "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup_ratio": 0.0},
        "train": train,
        **({"quantization": spec["quantization"]} if spec.get("quantization") else {}),
        **({"backend": {"name": "torch", **spec["backend"]}} if spec.get("backend") else {}),
        "trackers": [],
        "output": str(Path(spec["scratch"]) / "run"),
    }


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth

    ends = {"Python and imports": meter.now()}
    session = finetooth.session(recipe(spec))
    job = session.job
    ends["plan and data"] = meter.now()
    engine = session.engine
    ends["model and engine"] = meter.now()
    reports = []
    meter.begin()
    for report in job.method.steps(engine):
        meter.step(report.loss)
        reports.append(report)
    data = in_order(job.method, reports)
    positions = round(sum(report.tokens / (1 - report.padding) for report in reports))
    counted = [report.flops for report in reports]
    # causal attention reads half the square; rows of like length stand together, so little is padding
    sizes = [round(len(data) * report.rows / sum(each.rows for each in reports)) for report in reports]
    pairs = [sum(len(datum) ** 2 for datum in rows) / 2 for rows in steps(data, sizes)]
    more = {"pairs_per_second": len(data) / 2 / meter.train_s} if spec.get("method") in PREFERENCE else {}
    shift = 0 if spec.get("method") == "rm" else 1  # a score stands at a token, a target behind the one that it is of
    meter.trained(
        tokens=sum(report.tokens for report in reports),
        positions=positions,
        head_positions=sum(report.targets for report in reports),
        pairs=sum(pairs),
        step_tokens=[report.tokens for report in reports],
        step_pairs=pairs,
        ends_s=ends,
        flops=sum(counted) if all(counted) else None,
        rank=16 if spec["adapter"] == "lora" else 0,
        recompute=bool(job.plan.train.gradient_checkpointing),
        rows_digest=rows_digest(
            ([*datum.tokens, datum.targets[-1]], [i + shift for i in datum.mask.nonzero()[0]]) for datum in data
        ),
        **more,
        memory_estimate_bytes=job.plan.memory.total,
        settings={d.setting: d.value for d in job.plan.decisions if d.setting.startswith(("train.", "backend."))},
    )


def in_order(method: Any, reports: list[Any]) -> list[Any]:
    """The data that were trained. Two of a pair stand as TRL has them: of each step the chosen answers, then the
    rejected ones."""
    pairs = getattr(method, "_pairs", ())
    data = pairs.flat() if pairs else list(method._data)
    if not data or data[0].group is None:
        return data[: sum(report.rows for report in reports)]
    size = len(data) // len(reports)
    found: list[Any] = []
    for begin in range(0, len(data), size):
        step = data[begin : begin + size]
        found += [*step[0::2], *step[1::2]]
    return found


def steps(data: list[Any], rows: list[int]) -> Iterator[list[Any]]:
    """The data of each step.

    Args:
        rows: how many each took.
    """
    rest = iter(data)
    return (list(islice(rest, count)) for count in rows)


if __name__ == "__main__":
    main()
