"""TRL's DPOTrainer and RewardTrainer: with their defaults, or tuned by `spec["tuned"]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meter import Meter
from peer_clock import PeerClock
from peer_model import first_import, model_of, settings
from peer_rows import RATES, take_adapter

ANSWERS = ("chosen_ids", "rejected_ids")


def arguments(spec: dict[str, Any], kind: Any) -> Any:
    """The trainer's config: defaults, but for what the workload fixes."""
    import torch

    chosen, device_batch = settings(spec, spec["batch_size"])
    return kind(
        output_dir=spec["scratch"] + "/trl",
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=spec["batch_size"] // device_batch,
        max_length=spec["max_length"],
        num_train_epochs=1,
        learning_rate=RATES[spec["adapter"]],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        seed=0,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a CPU
        **chosen,
    )


def up_to_the_end_of_turn(row: dict[str, Any], end: int) -> dict[str, Any]:
    """The row without the line break that the template writes behind its last turn, which finetooth leaves out: the
    same tokens for everybody."""
    return {name: ids[: len(ids) - ids[::-1].index(end)] for name, ids in row.items() if name in ANSWERS}


def made(spec: dict[str, Any]) -> Any:
    """The trainer of the spec's method."""
    from datasets import Dataset

    lines = Path(spec["rows_file"]).read_text(encoding="utf-8").splitlines()
    rows = Dataset.from_list([json.loads(line) for line in lines])
    if spec["method"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOTrainer(**model_of(spec, task_type="CAUSAL_LM"), args=arguments(spec, DPOConfig), train_dataset=rows)
    from trl import RewardConfig, RewardTrainer

    model = model_of(spec, task_type="SEQ_CLS", modules_to_save=["score"])
    return RewardTrainer(**model, args=arguments(spec, RewardConfig), train_dataset=rows)


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    first_import(spec)
    clock = PeerClock(meter)
    trainer = made(spec)
    trainer.add_callback(clock.watch())
    take_adapter(trainer.model, spec[f"adapter_{spec['method']}"])
    if spec["method"] == "dpo":  # a reward model reads the line break too, on both sides
        end = {"end": int(trainer.processing_class.eos_token_id)}
        trainer.train_dataset = trainer.train_dataset.map(up_to_the_end_of_turn, fn_kwargs=end)
    trainer.train()
    args = trainer.args
    meter.trained(
        **clock.work(),
        rank=16,
        recompute=bool(args.gradient_checkpointing),
        pairs_per_second=len(trainer.train_dataset) / meter.train_s,
        settings={
            "bf16": args.bf16,
            "gradient_checkpointing": args.gradient_checkpointing,
            "dtype": str(next(trainer.model.parameters()).dtype),
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "attention": trainer.model.config._attn_implementation,
        },
    )


if __name__ == "__main__":
    main()
