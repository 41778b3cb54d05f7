"""Same numbers as the field: the loss trajectory of a LoRA fine-tune equals that of TRL's SFTTrainer.

Both start from the same adapter, read the same tokens in the same order, and take 20 steps of AdamW in fp32. TRL's
logged loss is a mean over
the trained tokens of a step, as is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STEPS, BATCH, RATE = 20, 4, 5e-4


def recipe(**more: Any) -> dict[str, Any]:
    return {
        "model": "smollm2-135m",
        "data": {"train": {"name": "tasks", "task": "family", "count": STEPS * BATCH, "seed": 3}},
        "method": "sft",
        "adapter": {"name": "lora", "rank": 8, "alpha": 16},
        "optimizer": {"name": "adamw", "learning_rate": RATE, "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup_ratio": 0.0},
        "train": {"batch_size": BATCH, "shuffle": False, "precision": "fp32", "max_length": 512},
        "trackers": [],
        **more,
    }


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[Any], Path]:
    """Our losses, the data they were computed on, and the adapter as it was before the first step."""
    import finetooth

    folder = tmp_path_factory.mktemp("trl")
    session = finetooth.session(recipe(output=str(folder / "run")))
    engine = session.engine
    engine.export(folder / "start")
    method = session.job.method
    losses = [report.loss for report in method.steps(engine)]
    return losses, list(method._data), folder / "start"


def trl_losses(data: list[Any], start: Path, folder: Path) -> list[float]:
    """The same run by TRL."""
    import finetooth
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from torch.utils.data import SequentialSampler
    from trl import SFTConfig, SFTTrainer

    job = finetooth.session(recipe(), data=False).job
    context = job.context
    base = context.loader.load(context.model.reference, framework="torch", precision="fp32", device="cpu")
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    rows = {
        "input_ids": [[*map(int, d.tokens), int(d.targets[-1])] for d in data],
        "labels": [[-100, *(int(t) if m else -100 for t, m in zip(d.targets, d.mask, strict=True))] for d in data],
    }

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *args: Any) -> Iterator[int]:
            return SequentialSampler(self.train_dataset)

    arguments = SFTConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, logging_steps=1, report_to=[],
        logging_nan_inf_filter=False, save_strategy="no", bf16=False, fp16=False, gradient_checkpointing=False,
        use_cpu=True, seed=0, optim="adamw_torch", warmup_steps=0,
        dataset_kwargs={"skip_prepare_dataset": True}, max_length=512, remove_unused_columns=False,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = context.tokenizer.wrapped  # type: ignore[attr-defined]
    trainer = InOrder(model=model, args=arguments, train_dataset=Dataset.from_dict(rows), processing_class=tokenizer)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_the_loss_trajectory_equals_that_of_trl(ours: tuple[list[float], list[Any], Path], tmp_path: Path) -> None:
    pytest.importorskip("trl")
    losses, data, start = ours
    theirs = trl_losses(data, start, tmp_path)
    assert len(losses) == len(theirs) == STEPS
    # TRL logs losses rounded to a few digits; the bound of 1e-3 relative is far above that
    assert losses == pytest.approx(theirs, rel=1e-3)
    assert losses[-1] < 0.7 * losses[0], "the run must have learned, or equal losses would prove little"
