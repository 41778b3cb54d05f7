"""Zero mismatch of every family with a renderer: a tiny random model samples, and at the first step the ratio of every
token to what drew it is 1 exactly. By each family's own renderer over several turns, and single turns in ChatML."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import finetooth
import pytest
import transformers
from finetooth_kit.families import EXPERTS, LATENT, MAMBA, SIZES, tiny_model
from finetooth_kit.templates import template_tokenizer

pytestmark = pytest.mark.slow

TEXT: Mapping[str, Any] = {
    **SIZES, "hidden_size": 32, "vocab_size": 4096, "max_position_embeddings": 512, "head_dim": 8,
}  # fmt: skip
HYBRID: Mapping[str, Any] = {"num_hidden_layers": 3, "intermediate_size": 48}
ROUTED: Mapping[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LINEAR: Mapping[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
MIXED: Mapping[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
FAMILIES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {}),
    "smollm3": ("smollm3", {}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", ROUTED),
    "qwen3_5_text": ("qwen3_5_text", {**LINEAR, "num_hidden_layers": 4}),
    "mistral": ("mistral", {}),
    "gemma2": ("gemma2", {**MIXED, "final_logit_softcapping": 0.2}),
    "gemma3_text": ("gemma3_text", MIXED),
    "phi3": ("phi3", {"sliding_window": 8}),
    "glm4": ("glm4", {}),
    "glm4_moe": ("glm4_moe", {**EXPERTS, "first_k_dense_replace": 1}),
    "deepseek_v3, kimi_k2": ("deepseek_v3", {**LATENT, **EXPERTS, "first_k_dense_replace": 1, "head_dim": None}),
    "gpt_oss": ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "cohere2": ("cohere2", {"layer_types": MIXED["layer_types"], "sliding_window": 8}),
    "granite": ("granite", {"logits_scaling": 3.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1}),
    "olmo3": ("olmo3", MIXED),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": ("falcon_h1", {**HYBRID, **MAMBA, "mamba_d_ssm": 64, "lm_head_multiplier": 0.5}),
    "nemotron_h": ("nemotron_h", {
        **HYBRID, "layers_block_type": ["mamba", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 8,
        "ssm_state_size": 8, "n_groups": 2, "chunk_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "moe_shared_expert_intermediate_size": 24,
    }),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_ratios_are_one(
    online_recipe: Callable[..., Any], tiny_llama: Path, tmp_path: Path, family: str,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:  # fmt: skip
    """A batch in four steps, drawn at a temperature among some tokens; the sampler's own numbers are those of the
    trainer but for rounding."""
    model_type, own = FAMILIES[family]
    sizes = {name: value for name, value in {**TEXT, **own}.items() if value is not None}
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tiny_model(config).save_pretrained(folder)
    method = {"name": "grpo", "num_generations": 4, "max_completion_length": 6, "num_iterations": 2, "mini_batches": 2}
    make = online_recipe({**method, "temperature": 0.9, "top_k": 20}, {"batch_size": 2, "max_steps": 2})
    given = make() | {"model": str(folder), "adapter": {"name": "lora", "rank": 2, "targets": "all-linear"}}
    assert finetooth.run(given).steps == 2
    first, _ = metrics(Path(given["output"]))
    assert first["ratio/min"] == first["ratio/max"] == 1.0
    assert first["sampling/sampling_logp_difference/max"] < 1e-4


RENDERERS: dict[str, tuple[str, str]] = {
    "llama3": ("llama", "finetooth_llama.renderer:Llama3"),
    "llama2": ("llama", "finetooth_llama.llama2:Llama2"),
    "smollm3": ("smollm3", "finetooth_llama.smollm3:SmolLM3"),
    "qwen": ("qwen2", "finetooth_qwen.renderer:Qwen"),
    "qwen3": ("qwen3", "finetooth_qwen.renderer:Qwen3"),
    "qwen3_instruct": ("qwen3_moe", "finetooth_qwen.renderer:Qwen3Instruct"),
    "qwen3_coder": ("qwen3_moe", "finetooth_qwen.coder:Qwen3Coder"),
    "qwen3_5": ("qwen3_5_text", "finetooth_qwen.qwen3_5:Qwen35"),
    "mistral": ("mistral", "finetooth_mistral.system_prompt:Small32"),
    "gemma": ("gemma3_text", "finetooth_gemma.renderer:Gemma"),
    "phi3": ("phi3", "finetooth_phi.phi3:Phi3"),
    "phi4": ("phi3", "finetooth_phi.phi4:Phi4"),
    "glm4_moe": ("glm4_moe", "finetooth_glm.renderer:GLM4Moe"),
    "glm4_7": ("glm4_moe", "finetooth_glm.renderer:GLM47"),
    "glm5": ("glm4_moe", "finetooth_glm.glm5:GLM5"),
    "deepseek_v3": ("deepseek_v3, kimi_k2", "finetooth_deepseek.fenced:DeepSeekV3"),
    "deepseek_v3_1": ("deepseek_v3, kimi_k2", "finetooth_deepseek.hybrid:DeepSeekV31"),
    "deepseek_v3_2": ("deepseek_v3, kimi_k2", "finetooth_deepseek.dsml:DeepSeekV32"),
    "deepseek_v4": ("deepseek_v3, kimi_k2", "finetooth_deepseek.dsml:DeepSeekV4"),
    "deepseek_r1": ("deepseek_v3, kimi_k2", "finetooth_deepseek.fenced:DeepSeekR1"),
    "kimi_k2": ("deepseek_v3, kimi_k2", "finetooth_kimi.renderer:KimiK2"),
    "harmony": ("gpt_oss", "finetooth_gptoss.renderer:Harmony"),
    "cohere2": ("cohere2", "finetooth_cohere.renderer:Cohere2"),
    "lfm2": ("lfm2", "finetooth_lfm2.renderer:LFM2Renderer"),
    "nemotron3": ("nemotron_h", "finetooth_nemotronh.renderer:Nemotron3"),
}
"""Each renderer of a family, with a family that it writes for and what it is made of."""
BASES: dict[str, Mapping[str, Any]] = {
    "full": {"adapter": "full"},
    "lora": {"adapter": {"name": "lora", "rank": 2, "targets": "all-linear"}},
    "int8": {"adapter": {"name": "lora", "rank": 2, "targets": "all-linear"}, "quantization": "int8"},
}
REFUSED = {("nemotron3", "int8")}
"""Experts that are stored in fewer bits there take no adapter of peft's, which a recipe with all-linear is told."""
DRAWN: dict[str, Mapping[str, Any]] = {
    "full": {"temperature": 0.7, "repetition_penalty": 1.2},
    "lora": {"temperature": 1.2, "top_k": 40},
    "int8": {"top_p": 0.8, "min_p": 0.02},
}
"""What the tokens of each are drawn among."""
GAME = '''
"""Three turns, the reward of which a random model's answers differ in."""
from finetooth_hooks import Answer, Environment, EnvironmentBase, EpisodeBase, Message, NoOptions, Observation, hookimpl

@hookimpl
def ft_environments():
    yield Environment(name="game", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return Game()

class Game(EnvironmentBase):
    capabilities = frozenset({"seeded", "concurrent"})
    def episode(self, task, seed):
        return Playing(task)

ENDS = tuple(range(30, 250, 3))  # a random model ends a turn soon enough

class Playing(EpisodeBase):
    def __init__(self, task):
        self.task, self.turns = task, 0
    def begin(self):
        return Observation(tuple(self.task.prompt), stop_ids=ENDS)
    def answer(self, turn):
        self.turns += 1
        reward = float(sum(turn.tokens) % 7)
        shown = Observation((Message("user", f"Go on, {self.turns}."),), stop_ids=ENDS)
        return Answer(None if self.turns == 3 else shown, reward)
'''


def controls_of(reference: str) -> list[str]:
    """Spellings of the control tokens of a renderer's markup."""
    module, _, name = reference.partition(":")
    kind = getattr(import_module(module), name)
    return list(dict.fromkeys((*kind.controls, *kind.optional, *kind.stops)))


@pytest.mark.parametrize(("renderer", "base"), [(r, b) for r in RENDERERS for b in BASES if (r, b) not in REFUSED])
def test_the_first_ratios_by_the_familys_own_renderer(
    recipe: Callable[..., Any], tmp_path: Path, renderer: str, base: str,
    metrics: Callable[[Path], list[dict[str, float]]],
) -> None:  # fmt: skip
    """Over several turns: of every token that the policy wrote, whether its sequence goes on over turns or each turn
    has its own, with a whole model, an adapter and a quantised base."""
    family, reference = RENDERERS[renderer]
    model_type, own = FAMILIES[family]
    controls = controls_of(reference)
    tokenizer = template_tokenizer("", controls, eos=controls[-1], bos=controls[0])
    sizes = {**TEXT, **own, "vocab_size": tokenizer.vocab_size, "max_position_embeddings": 2048}
    config = transformers.AutoConfig.for_model(
        model_type, **{name: value for name, value in sizes.items() if value is not None}
    )
    tiny_model(config).save_pretrained(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    (tmp_path / "game.py").write_text(GAME, encoding="utf-8")
    rows = "".join(json.dumps({"prompt": f"Say {n}."}) + "\n" for n in range(8))
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    given = recipe(
        model=str(tmp_path / "model"),
        data={"train": str(tmp_path / "rows.jsonl"), "format": "task", "renderer": renderer},
        method={
            "name": "grpo", "environment": "game", "num_generations": 4, "max_completion_length": 8, "max_turns": 3,
            "num_iterations": 2, "mini_batches": 2, **DRAWN[base],
        },
        train={"batch_size": 2, "precision": "fp32", "max_length": 2000, "max_steps": 2},
        evaluate={"evaluators": []},
        plugins=[str(tmp_path / "game.py")],
        **BASES[base],
    )  # fmt: skip
    assert finetooth.run(given).steps == 2
    first, _ = metrics(Path(given["output"]))
    assert first["environment/errors"] == 0 and first["environment/turns"] > 1
    assert first["ratio/min"] == first["ratio/max"] == 1.0
    assert first["sampling/sampling_logp_difference/max"] < 1e-4
