"""Tiny random models of every family, and what each cell of the table in docs/families.md tries with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import torch
import transformers
from finetooth_hooks import UserError
from finetooth_kit.byte_tokenizer import CHAT_TEMPLATE
from finetooth_kit.families import EXPERTS, LATENT, MAMBA, SIZES, tiny_model
from finetooth_kit.templates import template_tokenizer

OWN: Mapping[str, Any] = {
    **SIZES, "hidden_size": 32, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512,
    "initializer_range": 0.2,
}  # fmt: skip
MIXED: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
ROUTED: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL: Mapping[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
SHARED: Mapping[str, Any] = {**ROUTED, "shared_expert_intermediate_size": 16, "num_hidden_layers": 4}
LINEAR: Mapping[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
}  # fmt: skip
SMALL4: Mapping[str, Any] = {
    **MIXED, "global_head_dim": 16, "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 300,
}  # fmt: skip
DEEP: Mapping[str, Any] = {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "head_dim": None}
TOWER: Mapping[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_TOWER: Mapping[str, Any] = {
    "depth": 1, "hidden_size": 16, "embed_dim": 16, "num_heads": 2, "intermediate_size": 16, "patch_size": 14,
    "out_hidden_size": 32,
}  # fmt: skip
SECTIONS: Mapping[str, Any] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
MINISTRAL_3: Mapping[str, Any] = {"rope_parameters": {
    "rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64,
}}  # fmt: skip
TYPES: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "smollm3": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": ROUTED,
    "qwen3_next": {**SHARED, **LINEAR},
    "qwen3_5": {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": LINEAR, "vision_config": QWEN_TOWER,
    },
    "qwen3_5_text": LINEAR,
    "qwen3_5_moe": {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"], "text_config": {**SHARED, **LINEAR},
        "vision_config": QWEN_TOWER,
    },
    "qwen3_5_moe_text": {**SHARED, **LINEAR},
    "mistral": {},
    "mixtral": LOCAL,
    "ministral": MIXED,
    "ministral3": MINISTRAL_3,
    "gemma": {},
    "gemma2": {**MIXED, "final_logit_softcapping": 5.0},
    "gemma3": {"text_config": MIXED, "vision_config": TOWER},
    "gemma3_text": MIXED,
    "gemma3n_text": {
        **MIXED, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 2,
        "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4": {"text_config": SMALL4},
    "gemma4_text": {
        **SMALL4, "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2,
        "moe_intermediate_size": 8,
    },
    "phi": {},
    "phi3": {"sliding_window": 8},
    "glm": {},
    "glm4": {},
    "glm4_moe": {**EXPERTS, "first_k_dense_replace": 1},
    "glm4_moe_lite": {**LATENT, **EXPERTS, "mlp_layer_types": ["dense", "sparse"], "head_dim": None},
    "deepseek_v2": {**DEEP, "q_lora_rank": None},
    "deepseek_v3": DEEP,
    "gpt_oss": {**LOCAL, **MIXED},
    "cohere": {"logit_scale": 0.3},
    "cohere2": MIXED,
    "granite": {"logits_scaling": 3.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1},
    "granitemoehybrid": {
        **MAMBA, **LOCAL, "layer_types": ["mamba", "attention"], "shared_intermediate_size": 24,
    },
    "olmo2": {},
    "olmo3": MIXED,
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {**ROUTED, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3, "mamba_num_heads": 4,
        "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    },
    "nemotron": {},
    "apertus": {},
    "arcee": {},
    "seed_oss": {"attention_dropout": 0.0, "residual_dropout": 0.0},
    "ernie4_5": {},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 1},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2},
    "llama4_text": {"head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1},
    "exaone4": {**MIXED, "sliding_window_pattern": 2},

    "olmoe": ROUTED,
    "olmo": {},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "head_dim": None,
    },
    "mamba": {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": None, "state_size": 8, "expand": 2},
    "falcon_mamba": {
        "num_attention_heads": None, "num_key_value_heads": None, "head_dim": None, "state_size": 8, "expand": 2,
    },
    "mamba2": {
        "num_attention_heads": None, "num_key_value_heads": None, "num_heads": 8, "head_dim": 8, "state_size": 8,
        "n_groups": 2, "chunk_size": 8, "expand": 2,
    },
    "kimi_linear": {**DEEP, "linear_attn_config": {
        "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4, "kda_layers": [1], "full_attn_layers": [2],
    }},
    "mistral3": {"text_config": {"model_type": "mistral"}, "vision_config": {**TOWER, "model_type": "pixtral"}},
    "mistral3/ministral3": {
        "text_config": {"model_type": "ministral3", **MINISTRAL_3},
        "vision_config": {**TOWER, "model_type": "pixtral"},
    },
    "mistral3/mistral4": {
        "text_config": {"model_type": "mistral4", **LATENT, **EXPERTS, "head_dim": None},
        "vision_config": {**TOWER, "model_type": "pixtral"},
    },
    "mistral4": {**LATENT, **EXPERTS, "head_dim": None},
    "qwen2_vl": {"text_config": {"rope_parameters": SECTIONS, "head_dim": None}, "vision_config": QWEN_TOWER},
    "qwen2_5_vl": {"text_config": {"rope_parameters": SECTIONS, "head_dim": None}, "vision_config": QWEN_TOWER},
    "qwen3_vl": {
        "text_config": {"rope_parameters": SECTIONS},
        "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]},
    },
    "glm4v": {
        "text_config": {"rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
        "vision_config": QWEN_TOWER,
    },
    "glm4v_moe": {
        "architectures": ["Glm4vMoeForConditionalGeneration"], "vision_config": QWEN_TOWER,
        "text_config": {
            **EXPERTS, "first_k_dense_replace": 1,
            "rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]},
        },
    },
    "llama4": {
        "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": {"head_dim": 8, "num_local_experts": 4, "interleave_moe_layer_step": 1},
        "vision_config": {
            **TOWER, "projector_input_dim": 16, "projector_output_dim": 16, "vision_output_dim": 16,
        },
    },
    "phi4_multimodal": {
        "pad_token_id": 0,
        "vision_config": {**TOWER, "crop_size": 28, "num_img_tokens": 1},
        "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "input_size": 8,
            "nemo_conv_channels": 8, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16,
        },
    },
    "smolvlm": {"text_config": {"model_type": "llama"}, "vision_config": TOWER},
    "internvl": {
        "text_config": {"model_type": "qwen2"},
        "vision_config": {**TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
    },
    "voxtral": {"text_config": {"model_type": "llama"}, "audio_config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_source_positions": 32, "num_mel_bins": 8,
    }},
    "qwen2_audio": {"text_config": {"model_type": "qwen2"}, "audio_config": {
        "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16,
        "max_source_positions": 32, "num_mel_bins": 8,
    }},
}  # fmt: skip
"""What the config of each `model_type` says that differs from `OWN`; inside `text_config` for those that also see.
Behind a slash stands the type of the text, where a type has several."""
ABSENT: Mapping[str, str] = {
    "kimi_k2": "a config of deepseek_v3 under another name: see that row",
    "gemma3n": "its towers are built by timm, which these tests do not have; tests/media tries its images where timm "
    "and torchvision are installed, and its text is the row gemma3n_text",
}
"""Types without a row, and why."""
TORCHVISION = "its processor of transformers needs torchvision, which these tests do not have"
UNSEEN: Mapping[str, str] = dict.fromkeys(
    ("gemma4", "smolvlm", "mistral3", "internvl", "llama4", "phi4_multimodal"),
    f"{TORCHVISION}; tests/media tries it where that is installed",
) | {
    "glm4v_moe": "its processor is that of glm4v, whose images are tried",
    "qwen3_5_moe": "its processor is that of qwen3_5, whose images are tried",
}
"""Types that see or hear whose media the table does not try, and why."""
TARGETS: Mapping[str, str] = {"ernie4_5_moe": "attention", "hunyuan_v1_moe": "attention", "glm4v_moe": "attention"}
"""Where adapters cannot be on all linear modules: peft takes their `gate_proj` for that of the experts, and says so."""

COLUMNS = ("sft", "dpo", "grpo", "packed", "experts", "images", "quantised", "export")
Cell = tuple[bool, str]
"""Whether it works, and why not."""
REWARD = """from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]
"""
DATA = {"train": {"name": "tasks", "task": "family", "count": 4, "seed": 5}, "renderer": "chatml"}


class Tiny:
    """A tiny random model of a type, in a folder of its own."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        tokenizer = template_tokenizer(CHAT_TEMPLATE, ["<|im_start|>", "<|im_end|>"], eos="<|im_end|>")
        own, sizes = TYPES[kind], {**OWN, "vocab_size": tokenizer.vocab_size}
        if "text_config" in own:
            text = {k: v for k, v in {**sizes, **own["text_config"]}.items() if v is not None}
            given: dict[str, Any] = {**own, "text_config": text}
        else:
            given = {**sizes, **own}
        config = transformers.AutoConfig.for_model(
            kind.partition("/")[0], **{k: v for k, v in given.items() if v is not None}
        )
        self.model = tiny_model(config)
        self.model.save_pretrained(folder / "model")
        tokenizer.save(folder / "model")
        (folder / "letters.py").write_text(REWARD)
        pairs = [{"prompt": f"Say {n}.", "chosen": f"I say {n}.", "rejected": "No."} for n in range(4)]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
        uneven = [{"prompt": f"Count to {n}:", "completion": " ".join(map(str, range(n)))} for n in (2, 30, 5, 3)]
        (folder / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in uneven))

    @property
    def fused(self) -> list[str]:
        """Names of weights that hold matrices of many experts."""
        config = self.model.config.get_text_config().to_dict()
        if not any("expert" in key and isinstance(value, int) and value > 1 for key, value in config.items()):
            return []
        named = [name for name, weight in self.model.named_parameters() if weight.ndim == 3 and "conv" not in name]
        return sorted({name.split(".", name.split(".").index("layers") + 2)[-1] for name in named})

    def run(self, name: str, **sections: Any) -> list[dict[str, Any]]:
        """Steps of a run of two steps."""
        recipe = {
            "model": str(self.folder / "model"),
            "data": DATA,
            "adapter": {"name": "lora", "rank": 4, "targets": TARGETS.get(self.kind, "all-linear")},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "schedule": "constant",
            "evaluate": {"evaluators": []},
            "trackers": ["jsonl"],
            "output": str(self.folder / name),
            **sections,
            "train": {"batch_size": 4, "precision": "fp32", "max_length": 512, "max_steps": 2, "shuffle": False,
                      **sections.get("train", {})},
        }  # fmt: skip
        outcome = finetooth.run(recipe)
        assert outcome.status == "done", outcome
        # a text may hold characters that splitlines takes for the end of a line
        lines = map(json.loads, (self.folder / name / "metrics.jsonl").read_text(encoding="utf-8").strip().split("\n"))
        return [line for line in lines if line["event"] == "step"]

    def cell(self, column: str) -> Cell:
        """What a cell of the table says; an unexpected failure is raised."""
        return CELLS[column](self)


def _refusals(of: Callable[[Tiny], Cell]) -> Callable[[Tiny], Cell]:
    """A refusal in one line is what the cell says."""

    def tried(tiny: Tiny) -> Cell:
        try:
            return of(tiny)
        except UserError as error:
            return False, str(error).replace(str(tiny.folder), "FOLDER")

    return tried


def _sft(tiny: Tiny) -> Cell:
    first, second = tiny.run("sft")
    assert second["loss"] < first["loss"]
    return True, ""


def _dpo(tiny: Tiny) -> Cell:
    first, second = tiny.run(
        "dpo", data={"train": str(tiny.folder / "pairs.jsonl"), "renderer": "chatml"}, method="dpo"
    )
    assert abs(first["loss"] - np.log(2)) < 1e-4 and second["loss"] < first["loss"]
    return True, ""


def _grpo(tiny: Tiny) -> Cell:
    method = {"name": "grpo", "rewards": ["letters"], "num_generations": 4, "max_completion_length": 6,
              "num_iterations": 2, "skip_zero_advantage_batches": False}  # fmt: skip
    first, _ = tiny.run("grpo", data={**DATA, "format": "task"}, method=method,
                        plugins=[str(tiny.folder / "letters.py")], train={"batch_size": 2})  # fmt: skip
    assert first["metrics"]["ratio/min"] == first["metrics"]["ratio/max"] == 1.0
    assert first["metrics"]["sampling/sampling_logp_difference/max"] < 1e-3
    return True, ""


def _packed(tiny: Tiny) -> Cell:
    """Losses and gradients of rows in one row of the model's input are those of padded rows."""
    steps = {}
    for packing in (True, False):
        steps[packing] = tiny.run(
            f"packing-{packing}", data={"train": str(tiny.folder / "uneven.jsonl"), "renderer": "chatml"},
            backend={"name": "torch", "decoder": "transformers", "packing": packing}, train={"max_length": 400},
        )  # fmt: skip
    for one, other in zip(steps[True], steps[False], strict=True):
        assert abs(one["loss"] / other["loss"] - 1) < 1e-4 and abs(one["grad_norm"] / other["grad_norm"] - 1) < 1e-3
    assert steps[True][0]["padding"] < steps[False][0]["padding"]
    return True, ""


def _experts(tiny: Tiny) -> Cell:
    if not tiny.fused:
        return False, "no experts"
    adapter = {"name": "lora", "rank": 2, "targets": [], "target_parameters": tiny.fused}
    first, second = tiny.run("experts", adapter=adapter, optimizer={"name": "adamw", "learning_rate": 1e-3})
    assert second["loss"] < first["loss"]
    return True, ""


def _images(tiny: Tiny) -> Cell:
    if not any(hasattr(tiny.model.config, name) for name in ("vision_config", "audio_config")):
        return False, "reads text only"
    if (kind := tiny.kind.partition("/")[0]) in UNSEEN:
        return False, f"{UNSEEN[kind]}; its text trains, and its tower stays as it is"
    return True, ""  # tests/media, with its processor


def _quantised(tiny: Tiny) -> Cell:
    first, second = tiny.run("quantised", quantization={"name": "int4", "group": 32})
    assert second["loss"] < first["loss"]
    return True, ""


def _export(tiny: Tiny) -> Cell:
    """What a run merges has the names of the base, loads in transformers alone, and computes what the run does."""
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State

    if not (tiny.folder / "sft").exists():
        _sft(tiny)
    out = tiny.folder / "merged"
    if (code := _command("merge", str(tiny.folder / "sft"), "--output", str(out))) != 0:
        return False, f"ft merge ends with {code}"
    from safetensors import safe_open

    def names(folder: Path) -> set[str]:
        files = folder.glob("*.safetensors")
        return {name for file in files for name in safe_open(file, "np").keys()}  # noqa: SIM118

    assert names(out) == names(tiny.folder / "model")
    loaded = type(tiny.model).from_pretrained(out, dtype=torch.float32).eval()
    ids = torch.arange(9)[None] + 3
    engine = State(StartOptions()).open(str(tiny.folder / "sft")).engine
    from finetooth_hooks import Datum

    (ours,) = engine.logprobs([Datum.from_tokens(ids[0].tolist(), id="row")])
    with torch.no_grad():
        theirs = loaded(input_ids=ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)
    return True, ""


def _command(*words: str) -> int:
    from finetooth_core.cli import main

    return int(main(list(words)))


CELLS: Mapping[str, Callable[[Tiny], Cell]] = {
    "sft": _refusals(_sft), "dpo": _refusals(_dpo), "grpo": _refusals(_grpo), "packed": _refusals(_packed),
    "experts": _refusals(_experts), "images": _images, "quantised": _refusals(_quantised),
    "export": _refusals(_export),
}  # fmt: skip
