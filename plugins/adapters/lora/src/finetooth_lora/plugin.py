"""LoRA: a low-rank addition to chosen linear modules (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from finetooth_hooks import Adapter, Command, UserError, hookimpl


def base_of(folder: Path) -> str | None:
    """The base in the `adapter_config.json` of a folder; None if the file or the weights are missing."""
    about = folder / "adapter_config.json"
    if not about.is_file() or not (folder / "adapter_model.safetensors").is_file():
        return None
    try:
        config = json.loads(about.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{about} is not JSON: {error}", action="name a complete adapter folder") from error
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else None


@hookimpl
def ft_adapters() -> Iterable[Adapter]:
    """The adapters `lora` and `relora`."""
    yield Adapter(
        name="lora",
        build="finetooth_lora.adapter:build",
        summary="train a low-rank addition to the linear modules; the base stays frozen",
        default=True,
        can_disable=True,
        base_frozen=True,
        accepts_quantised=True,
        example={"rank": 4},
        base_of=base_of,
        elsewhere={
            "dora": {"dora": True},
            "rslora": {"rslora": True},
            "pissa": {"init": "pissa"},
            "olora": {"init": "olora"},
            "loftq": {"init": "loftq"},
            "eva": {"init": "eva"},
            "lora_plus": {"loraplus_ratio": 16},
            "peft": {},
            "low_rank": {},
            "qlora": {},
        },
    )
    yield Adapter(
        name="relora",
        build="finetooth_lora.relora:ReLoraAdapter",
        summary="train a low-rank addition; at a fixed interval, merge it into the base and start a new one",
        example={"rank": 4},
        expected_failures={
            "export_holds_what_trained": "the artifact is the whole model, with the product of A and B in its weights"
        },
    )


@hookimpl
def ft_commands() -> Iterable[Command]:
    """The commands `ft merge` and `ft adapters`."""
    yield Command(
        name="merge",
        build="finetooth_lora.merge:command",
        summary="merge an adapter into its base model",
        section="Use",
        after_run="{run}",
    )
    yield Command(
        name="adapters",
        build="finetooth_lora.adapters_command:command",
        summary="compare adapters, and combine several into one",
        section="Use",
    )
