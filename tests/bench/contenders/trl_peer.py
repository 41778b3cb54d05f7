"""TRL's SFTTrainer: with its defaults, or tuned by `spec["tuned"]`."""

from __future__ import annotations

from typing import Any

from meter import Meter
from peer_clock import PeerClock
from peer_model import first_import, model_of, settings
from peer_rows import RATES, prompt_completion, take_adapter, windows


def arguments(spec: dict[str, Any]) -> Any:
    """SFTConfig: defaults, but for what the workload fixes."""
    import torch
    from trl import SFTConfig

    chosen, device_batch = settings(spec, spec["batch_size"])
    if spec.get("quantization"):
        chosen["model_init_kwargs"] = {**chosen.get("model_init_kwargs", {}), "quantization_config": bits(spec)}
    return SFTConfig(
        output_dir=spec["scratch"] + "/trl",
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=spec["batch_size"] // device_batch,
        max_length=spec["length"] + 1 if spec.get("method") == "pretrain" else spec["max_length"],
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


def bits(spec: dict[str, Any]) -> Any:
    """How a base of few bits is held: as QLoRA has it, computed in the workload's precision."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=spec["quantization"],
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32 if spec["precision"] == "fp32" else torch.bfloat16,
    )


def end_of_turn(trainer: Any) -> int:
    """The id that ends a message, which is this model's end of text."""
    return int(trainer.processing_class.eos_token_id)


def up_to_the_end_of_turn(row: dict[str, Any], end: int) -> dict[str, Any]:
    """The row without the line break that the template writes behind its last turn, which TRL would train and which
    the other contenders leave out: the same tokens and labels for everybody."""
    stop = len(row["input_ids"]) - row["input_ids"][::-1].index(end)
    return {name: values[:stop] if isinstance(values, list) else values for name, values in row.items()}


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    first_import(spec)
    from datasets import Dataset
    from trl import SFTTrainer

    clock = PeerClock(meter)
    pretrain = spec.get("method") == "pretrain"
    rows = [{"input_ids": ids} for ids in windows(spec)] if pretrain else prompt_completion(spec)
    lora = spec["adapter"] == "lora"
    args = arguments(spec)
    trainer = SFTTrainer(
        **model_of(spec),
        args=args,
        train_dataset=Dataset.from_list(rows),
        callbacks=[clock.watch()],
    )
    if lora:
        take_adapter(trainer.model, spec["adapter_folder"])
    if not pretrain:
        trainer.train_dataset = trainer.train_dataset.map(
            up_to_the_end_of_turn, fn_kwargs={"end": end_of_turn(trainer)}
        )
    trainer.train()
    meter.trained(
        **clock.work(),
        rank=16 if lora else 0,
        recompute=bool(args.gradient_checkpointing),
        settings={
            "bf16": args.bf16,
            "gradient_checkpointing": args.gradient_checkpointing,
            "dtype": str(next(trainer.model.parameters()).dtype),
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "loss_type": args.loss_type,
            "attention": trainer.model.config._attn_implementation,
        },
    )


if __name__ == "__main__":
    main()
