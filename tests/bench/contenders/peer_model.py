"""What TRL's trainers are given: the model with its adapter, and the settings that decide how fast it is."""

from __future__ import annotations

from typing import Any


def first_import(spec: dict[str, Any]) -> None:
    """Import unsloth if the spec asks for it: it changes libraries, so it comes before them."""
    if spec.get("unsloth"):
        import unsloth  # noqa: F401


def model_of(spec: dict[str, Any], **lora: Any) -> dict[str, Any]:
    """The trainer's `model` and `peft_config`: the folder and a LoRA, or a model that unsloth made.

    Args:
        lora: of the LoRA in addition, for peft alone.
    """
    from peft import LoraConfig

    adapted = spec.get("adapter") == "lora"
    if not spec.get("unsloth"):
        config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", **lora) if adapted else None
        return {"model": spec["model_folder"], "peft_config": config}
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        spec["model_folder"],
        max_seq_length=spec["max_length"],
        dtype=None,  # as it is on disk
        load_in_4bit=False,
        full_finetuning=spec.get("adapter") == "full",
        use_gradient_checkpointing=False,
    )
    if adapted:
        model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, use_gradient_checkpointing=False)
    return {"model": model, "peft_config": None}


def settings(spec: dict[str, Any], device_batch: int) -> tuple[dict[str, Any], int]:
    """What a trainer's config is told in addition to the workload, and the rows of a device batch.

    Args:
        device_batch: unless `spec["tuned"]` says less.
    """
    if spec.get("tuned"):
        tuned = dict(spec["tuned"])
        device_batch, dtype = min(device_batch, tuned.pop("per_device_batch_size")), tuned.pop("dtype")
        return (tuned if spec.get("unsloth") else {"model_init_kwargs": {"dtype": dtype}, **tuned}), device_batch
    return ({"bf16": False} if spec["precision"] == "fp32" else {}), device_batch
