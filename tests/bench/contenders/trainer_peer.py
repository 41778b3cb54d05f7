"""transformers' plain Trainer with its defaults, and peft for a LoRA."""

from __future__ import annotations

from meter import Meter
from peer_clock import PeerClock
from peer_rows import RATES, take_adapter, tokenised


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    clock = PeerClock(meter)
    tokenizer = AutoTokenizer.from_pretrained(spec["model_folder"])
    model = AutoModelForCausalLM.from_pretrained(spec["model_folder"])
    if spec["adapter"] == "lora":
        model = get_peft_model(
            model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        )
        take_adapter(model, spec["adapter_folder"])
    rows = tokenised(spec, tokenizer)
    args = TrainingArguments(
        output_dir=spec["scratch"] + "/trainer",
        per_device_train_batch_size=spec["batch_size"],
        num_train_epochs=1,
        learning_rate=RATES[spec["adapter"]],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        seed=0,
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collator, callbacks=[clock.watch()])
    trainer.train()
    meter.trained(
        **clock.work(),
        rank=16 if spec["adapter"] == "lora" else 0,
        recompute=bool(args.gradient_checkpointing),
        settings={"bf16": args.bf16, "dtype": str(next(model.parameters()).dtype)},
    )


if __name__ == "__main__":
    main()
