"""TRL's GRPOTrainer: with its defaults, or tuned by `spec["tuned"]`."""

from __future__ import annotations

from typing import Any

from grpo_rows import drawn, prompts, vowels
from meter import Meter
from peer_model import first_import, model_of, settings
from peer_rows import RATES, take_adapter


def arguments(spec: dict[str, Any]) -> Any:
    """GRPOConfig: defaults, but for what the workload fixes. Rollouts of a step are drawn together, as TRL does unless
    it is told otherwise."""
    import torch
    from trl import GRPOConfig

    rollouts = spec["batch_size"] * spec["generations"]
    chosen, device_batch = settings(spec, min(8, rollouts))
    return GRPOConfig(
        output_dir=spec["scratch"] + "/trl",
        per_device_train_batch_size=device_batch,
        gradient_accumulation_steps=rollouts // device_batch,
        num_generations=spec["generations"],
        max_completion_length=spec["new_tokens"],
        temperature=1.0,
        loss_type="dapo",
        max_steps=spec["steps"],
        learning_rate=RATES["lora"],
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        save_strategy="no",
        logging_steps=1,
        report_to=[],
        seed=0,
        use_cpu=not torch.cuda.is_available(),  # without it bf16 is refused on a CPU
        **chosen,
    )


def watched(meter: Meter) -> tuple[Any, Any, list[tuple[int, int, int]]]:
    """The trainer as it is, but that it tells what it drew.

    Returns:
        The trainer's class, the callback that it needs, and for each rollout the tokens of its prompt, of its
        completion, and the positions of its padded row.
    """
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    rollouts: list[tuple[int, int, int]] = []

    class Watched(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            asked, said = found["prompt_mask"], found["completion_mask"]
            width = asked.shape[1] + said.shape[1]
            lengths = zip(asked.sum(1).tolist(), said.sum(1).tolist(), strict=True)
            rollouts.extend((int(prompt), int(completion), width) for prompt, completion in lengths)
            return found

    class Steps(TrainerCallback):  # type: ignore[misc]
        """Where a step begins and ends, its rollouts included."""

        def on_step_begin(self, *args: Any, **more: Any) -> None:
            meter.begin()

        def on_step_end(self, *args: Any, **more: Any) -> None:
            meter.step(None)

    return Watched, Steps(), rollouts


def counted(model: Any) -> dict[str, int]:
    """What goes into the model from now on: `read`, positions of prompts before answers are drawn, and `trained`, those
    of passes with gradients. Padding is counted, single tokens of answers that are written are not."""
    import torch

    found = {"read": 0, "trained": 0}

    def seen(_: Any, inputs: tuple[Any, ...]) -> None:
        tokens = inputs[0]
        if torch.is_grad_enabled():
            found["trained"] += tokens.numel()
        elif tokens.shape[-1] > 1:
            found["read"] += tokens.numel()

    model.get_input_embeddings().register_forward_pre_hook(seen)
    return found


def main() -> None:
    """Train and report."""
    meter = Meter()
    spec = meter.spec
    first_import(spec)
    from datasets import Dataset

    trainer_class, steps, rollouts = watched(meter)
    args = arguments(spec)
    trainer = trainer_class(
        **model_of({"adapter": "lora", **spec}),
        reward_funcs=vowels,
        args=args,
        train_dataset=Dataset.from_list(prompts(spec)),
        callbacks=[steps],
    )
    take_adapter(trainer.model, spec["adapter_folder"])
    positions = counted(trainer.model)
    trainer.train()
    meter.trained(
        tokens=sum(asked + said for asked, said, _ in rollouts),
        positions=sum(width for _, _, width in rollouts),
        head_positions=sum(said for _, said, _ in rollouts),
        pairs=sum(width**2 for _, _, width in rollouts),
        rank=16,
        recompute=bool(args.gradient_checkpointing),
        rewards=[line["reward"] for line in trainer.state.log_history if "reward" in line],
        settings={
            "bf16": args.bf16,
            "gradient_checkpointing": args.gradient_checkpointing,
            "dtype": str(next(trainer.model.parameters()).dtype),
            "per_device_train_batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "loss_type": args.loss_type,
            "attention": trainer.model.config._attn_implementation,
        },
        prompt_tokens=sum(asked for asked, _, _ in rollouts) // spec["generations"],
        read_positions=positions["read"],
        trained_positions=positions["trained"],
        **drawn([said for _, said, _ in rollouts], meter),
    )


if __name__ == "__main__":
    main()
