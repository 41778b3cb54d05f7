"""finetooth's grpo, driven as `ft run` drives it, without trackers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grpo_rows import drawn, prompts
from meter import Meter
from peer_rows import RATES


def recipe(spec: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a spec; the prompts are written beside the run."""
    rows = Path(spec["scratch"]) / "prompts.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in prompts(spec)), encoding="utf-8")
    function = spec.get("reward", "vowels")
    reward = {"name": "python_function", "file": str(Path(__file__).parent / "grpo_rows.py"), "function": function}
    return {
        "model": spec["model_folder"],
        "data": {"train": str(rows), "format": "task"},
        "method": {
            "name": "grpo",
            "rewards": [reward],
            "num_generations": spec["generations"],
            "max_completion_length": spec["new_tokens"],
            "loss_type": "dapo",
            "prefetch": spec.get("prefetch", 0),
            "keep_rollouts": False,
        },
        "adapter": {"name": "lora", "rank": 16, "alpha": 32},
        "optimizer": {"name": "adamw", "learning_rate": RATES["lora"], "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup_ratio": 0.0},
        "train": {
            "batch_size": spec["batch_size"],
            "max_steps": spec["steps"],
            "max_length": 1024,
            "shuffle": False,
            "precision": spec["precision"],
            "micro_batch_tokens": spec.get("micro_batch_tokens", "auto"),
            "seed": 0,
        },
        "trackers": [],
        "output": str(Path(spec["scratch"]) / "run"),
    }


def counted() -> dict[str, int]:
    """What the engine says that it computes, from now on: `read`, positions that went through the layers to read
    prompts before answers are drawn, and `trained`, those of passes with gradients. Padding is counted."""
    import torch
    from finetooth_torch import network
    from finetooth_torch.network import Network

    found, sampled, count = {"read": 0, "trained": 0}, Network.sampled, network.count

    def reading(self: Any, read: Any, written: Any) -> None:
        found["read"] += read.positions
        sampled(self, read, written)

    def counting(model: Any, batches: Any, how: Any = None) -> Any:
        if torch.is_grad_enabled():
            found["trained"] += sum(batch.positions for batch in batches)
        return count(model, batches, how)

    Network.sampled, network.count = reading, counting  # type: ignore[method-assign,assignment]
    return found


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth

    session = finetooth.session(recipe(spec))
    engine, reports = session.engine, []
    positions = counted()
    meter.begin()
    for report in session.job.method.steps(engine):
        meter.step(report.loss)
        reports.append(report)
    lengths = [len(one.tokens) for report in reports for one in report.rollouts]
    sequences = [len(one.prompt) + len(one.tokens) for report in reports for one in report.rollouts]
    flops = [report.flops for report in reports]
    meter.trained(
        tokens=sum(sequences),
        positions=sum(sequences),
        head_positions=sum(lengths),
        pairs=sum(size**2 for size in sequences) / 2,
        flops=sum(flops) if all(flops) else None,
        rank=16,
        rewards=[report.metrics["reward"] for report in reports],
        settings={d.setting: d.value for d in session.job.plan.decisions if d.setting.startswith("train.")},
        prompt_tokens=sum(len(one.prompt) for report in reports for one in report.rollouts) // spec["generations"],
        read_positions=positions["read"],
        trained_positions=positions["trained"],
        **drawn(lengths, meter),
    )


if __name__ == "__main__":
    main()
