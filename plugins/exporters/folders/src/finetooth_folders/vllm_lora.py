"""An adapter as vLLM loads it: peft's layout without what vLLM refuses, and the tokenizer.

vLLM (https://docs.vllm.ai/en/latest/features/lora.html) reads `adapter_config.json` and `adapter_model.safetensors`,
takes ranks of fixed sizes, and refuses DoRA, biases, modules that are saved whole, and additions to embeddings.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from finetooth_hooks import Exported, ExporterBase, ExportSource, UserError
from finetooth_toolbox.files.trained_over import recorded_base

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` takes; it must be at least the rank of the adapter."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
             "generation_config.json", "opening.json")  # fmt: skip


class VllmLoraExporter(ExporterBase):
    """Of low-rank adapters in peft's layout."""

    def check(self, source: ExportSource) -> None:
        """Refuse what vLLM cannot load.

        Raises:
            UserError: the run holds no adapter, or one that vLLM does not load.
        """
        if not source.adapter:
            raise UserError(
                f"{source.run}: it holds whole weights, not an adapter", action="export it with --to safetensors"
            )
        config = _config(source.artifact)
        merge = "merge it: ft export --to safetensors"
        if config.get("peft_type") != "LORA":
            raise UserError(f"{source.run}: vLLM loads LoRA only, this is {config.get('peft_type')}", action=merge)
        for name, what in (
            ("use_dora", "DoRA"),
            ("modules_to_save", "modules that are saved whole"),
            ("trainable_token_indices", "trained tokens"),
            ("target_parameters", "additions to parameters"),
        ):
            if config.get(name):
                raise UserError(f"{source.run}: vLLM loads no adapter with {what}", action=merge)
        if config.get("bias", "none") != "none":
            raise UserError(f"{source.run}: vLLM loads no adapter with trained biases", action=merge)
        if config["r"] > RANKS[-1]:
            raise UserError(f"{source.run}: vLLM loads ranks up to {RANKS[-1]}, this is {config['r']}", action=merge)

    def export(self, source: ExportSource, folder: Path) -> Exported:
        """Copy it, and look at every tensor.

        Raises:
            UserError: a tensor is none that vLLM knows.
        """
        from safetensors import safe_open

        settings = _config(source.artifact)
        with safe_open(source.artifact / WEIGHTS, framework="pt") as opened:
            names = list(opened.keys())
        for name in names:
            if "embed_tokens" in name:
                raise UserError(
                    f"{source.run}: vLLM loads no addition to embeddings",
                    action="merge it: ft export --to safetensors",
                )
            if not name.startswith("base_model.model.") or not name.endswith((".lora_A.weight", ".lora_B.weight")):
                raise UserError(
                    f"{source.run}: {name} is not a low-rank addition to a linear module",
                    action="merge it: ft export --to safetensors",
                )
        for name in (CONFIG, WEIGHTS, *TOKENIZER):
            if (source.artifact / name).is_file():
                shutil.copyfile(source.artifact / name, folder / name)
        rank = next(rank for rank in RANKS if rank >= settings["r"])
        base = settings["base_model_name_or_path"]
        use = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules mine={{folder}}"
        if "rope_scaling" in recorded_base(source.artifact):  # of the recipe's: the base's own config does not have it
            config = source.context.model.config
            positions = {name: config[name] for name in ("rope_parameters", "max_position_embeddings")}
            use += f" --hf-overrides '{json.dumps(positions)}'".replace("{", "{{").replace("}", "}}")
        return Exported(use=use, checks=(f"{len(names)} tensors are low-rank additions, of rank {settings['r']}",))


def _config(artifact: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((artifact / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{artifact / CONFIG} cannot be read: {error}", action="name a run with a LoRA") from error
    return config
