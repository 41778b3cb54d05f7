"""Recipes of methods that keep more than a place in the data: references that move, losses that remember, heads,
rollouts in flight; and of bases, adapters and optimizers that keep more than weights and moments."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = ("plum", "pear", "fig", "lime", "date", "kiwi", "nut", "oat", "rye", "bean")


@dataclass(frozen=True)
class MethodCase:
    """One recipe.

    Attributes:
        name: of the trial.
        method: the pick.
        rows: `pairs`, `labels`, `steps` or `answers`, see `write_method_data`; or `tasks`, made up, whose answers are
            drawn and scored by the reward `letters`.
        sections: of the recipe, in place of the usual ones.
        inside: calls within the run at which it may be killed beside those of files, see `zygote.INSIDE`.
        ranks: that train it.
    """

    name: str
    method: Mapping[str, Any]
    rows: str = "pairs"
    sections: Mapping[str, Any] = field(default_factory=dict)
    inside: tuple[str, ...] = ()
    ranks: int = 1

    def recipe(self, folder: Path, model: Path, output: Path) -> dict[str, Any]:
        """The recipe of the case.

        Args:
            folder: with the data that `write_method_data` wrote.
        """
        rows = str(folder / f"{self.rows}.jsonl")
        data: dict[str, Any] = {"train": f"{rows}[:20]", "eval": f"{rows}[20:]", "renderer": "chatml"}
        more: dict[str, Any] = {}
        if self.rows == "tasks":
            tasks = {"name": "tasks", "task": "family", "count": 20, "seed": 5}
            data = {"train": tasks, "format": "task", "renderer": "chatml"}
            more = {"plugins": [str(folder / "letters.py")], "evaluate": {"evaluators": []}}
        return {
            "model": str(model),
            "data": data,
            "method": {name: str(model) if of == TEACHER else of for name, of in self.method.items()},
            "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
            "optimizer": {"name": "adamw", "learning_rate": 5e-3},
            "schedule": "cosine",
            "train": {
                "batch_size": 4, "max_length": 64, "precision": "fp32", "micro_batch_tokens": 128,
                "max_steps": 9, "epochs": 10,
            },
            "evaluate": {"every": 4},
            "checkpoint": {"every": 2, "keep_last": 3},
            "trackers": ["jsonl"],
            "output": str(output),
            **more,
            **self.sections,
        }  # fmt: skip


FULL: Mapping[str, Any] = {"adapter": "full", "optimizer": {"name": "adamw", "learning_rate": 1e-3}}

TEACHER = "the model of the case"
"""In a method, replaced by it."""

REWARD = '''"""A reward that answers of a random model differ in."""
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    def score(prompts, completions, columns):
        return [float(sum(c in "aeiou" for c in text.lower())) for text in completions]
    return score
'''

METHOD_CASES = (
    MethodCase("dpo-adapter_off", {"name": "dpo", "beta": 0.5}),
    MethodCase("dpo-following_copy", {"name": "dpo", "reference": {"policy": "frozen-copy", "sync_every": 3}}),
    MethodCase(
        "dpo-following_copy-full-bf16",
        {"name": "dpo", "reference": {"sync_every": 3, "mix": 0.4}},
        sections={**FULL, "train": {
            "batch_size": 4, "max_length": 64, "precision": "bf16", "max_steps": 9, "epochs": 10,
        }},
    ),
    MethodCase("dpo-precomputed-full", {"name": "dpo", "reference": "precomputed"}, sections=FULL),
    MethodCase("dpo-running_mean", {"name": "dpo", "losses": ["bco_pair", {"name": "sft", "weight": 0.1}]}),
    MethodCase("kto", {"name": "kto", "beta": 0.5}, rows="labels"),
    MethodCase("kto-following_copy", {"name": "kto", "reference": {"sync_every": 2}}, rows="labels"),
    MethodCase("rm", {"name": "rm", "center_rewards_coefficient": 0.01}),
    MethodCase("rm-full-fp16", {"name": "rm"}, sections={**FULL, "train": {
        "batch_size": 4, "max_length": 64, "precision": "fp16", "max_steps": 9, "epochs": 10,
    }}),
    MethodCase("prm", {"name": "prm"}, rows="steps"),
    *(MethodCase(name, {"name": name}) for name in ("orpo", "simpo", "cpo")),
    MethodCase("distill", {"name": "distill", "teacher": TEACHER, "cross_entropy": 0.5}, rows="answers"),
    MethodCase("distill-sequences", {
        "name": "distill", "teacher": TEACHER, "sequences": 2, "max_completion_length": 8,
    }, rows="tasks"),
    MethodCase("dpo-schedule_free", {"name": "dpo"}, sections={
        "optimizer": {"name": "schedule_free_adamw", "learning_rate": 5e-3}, "schedule": "constant",
    }),
    MethodCase("rm-full-galore", {"name": "rm"}, sections={
        **FULL, "optimizer": {"name": "galore", "rank": 4, "update_every": 3, "learning_rate": 1e-3},
    }),
    MethodCase("dpo-qlora-4bit", {"name": "dpo"}, sections={
        "quantization": {"name": "int4", "group": 32}, "optimizer": {"name": "adamw_4bit", "learning_rate": 5e-3},
    }),
    MethodCase("rm-full-galore_8bit", {"name": "rm"}, sections={
        **FULL, "optimizer": {"name": "galore_8bit", "rank": 32, "update_every": 3, "learning_rate": 1e-3},
    }),
    MethodCase("dpo-relora", {"name": "dpo", "reference": "precomputed"}, sections={
        "adapter": {"name": "relora", "rank": 4, "every": 3, "warm_up": 1},
    }),
    MethodCase("dpo-streamed_layers", {"name": "dpo"}, sections={
        "backend": {"name": "torch", "layers": "disk", "layer_window": 1, "activations": "disk"},
    }),
)  # fmt: skip


ONLINE: Mapping[str, Any] = {
    "batch_size": 2, "max_length": 256, "precision": "fp32", "max_steps": 6, "epochs": 10,
}  # fmt: skip


def online(
    name: str, method: str, inside: tuple[str, ...] = ("sample", "token", "score"), *, batch: int = 2, **options: Any
) -> MethodCase:
    """A case that learns from rollouts."""
    train = {**ONLINE, "batch_size": batch}
    given = {"name": method, "max_completion_length": 8, "num_generations": 4, "rewards": ["letters"], **options}
    return MethodCase(name, given, rows="tasks", sections={"train": train}, inside=inside)


STAND_IN = "address of the stand-in of a vLLM server"
"""In a recipe, replaced by it."""
VLLM: Mapping[str, Any] = {"sampler": {"name": "vllm", "url": STAND_IN}, "max_logp_difference": 100}
"""The stand-in draws by numbers of its own, which the weights that are put in do not change."""
SDFT: Mapping[str, Any] = {
    "name": "sdft", "num_generations": 4, "max_completion_length": 8, "demonstration": "completion",
}  # fmt: skip
PARTS: Mapping[str, Any] = {"prefetch": 2, "partial_rollouts": 3, "partial_groups": True, "max_staleness": 4}

ONLINE_CASES = (
    online("grpo", "grpo", num_iterations=2),
    online("grpo-ahead", "grpo", prefetch=2),
    online("grpo-ahead-parts", "grpo", **PARTS),
    online("grpo-replay", "grpo", replay_groups=4, reroll_groups=1, reroll_start=0.2),
    online("grpo-ahead-parts-replay", "grpo", **PARTS, replay_groups=4, reroll_groups=1, reroll_start=0.2),
    online("grpo-dynamic-ahead", "grpo", dynamic_sampling=True, prefetch=1),
    online("grpo-vllm", "grpo", ("sample", "score", "put", "post"), **VLLM),
    online("grpo-vllm-ahead", "grpo", ("sample", "score", "put", "post"), **VLLM, prefetch=2),
    online("ppo", "ppo", num_iterations=2),
    online("ppo-ahead", "ppo", prefetch=1, mini_batches=2),
    online("rloo", "rloo"),
    online("reinforce_plus_plus", "reinforce_plus_plus", prefetch=1),
    online("best_of_n", "best_of_n"),
    online("opd", "opd", ("sample", "token"), teacher=TEACHER, rewards=[]),
    online("opd-distributions", "opd", ("sample", "token"), teacher=TEACHER, rewards=[], teacher_top_k=8),
    online("self_rewarding", "self_rewarding", ("sample", "token"), batch=8, rewards=[]),
    online("iterative_dpo", "self_rewarding", ("sample", "token"), batch=8),
    online("ebft", "ebft", rewards=[], reference_column="completion"),
    online("ebft-ahead", "ebft", rewards=[], reference_column="completion", prefetch=1),
    MethodCase(
        "ebft_strided", {
            "name": "ebft_strided", "stride": 2, "context_length": 2, "generate_max_len": 2, "n_samples_per_prompt": 2,
        }, "answers", inside=("token",),
    ),
    MethodCase("gkd", {"name": "gkd", "teacher": TEACHER, "max_completion_length": 8}, "answers", inside=("token",)),
    MethodCase("uld", {"name": "uld", "teacher": TEACHER}, "answers"),
    MethodCase("uld-length", {"name": "uld", "teacher": TEACHER, "align": "length"}, "answers"),
    MethodCase("spin", {"name": "spin", "max_completion_length": 8}, "answers", inside=("token",)),
    MethodCase("sdft", SDFT, "tasks", {"train": ONLINE}, ("sample", "token")),
)  # fmt: skip
"""Those that learn from rollouts."""


def over_ranks(strategy: Any, name: str, method: Any, rows: str, **sections: Any) -> MethodCase:
    """A case of two ranks."""
    scale = {"devices": 2, "strategy": strategy, "launcher": "local"}
    given = {"name": method} if isinstance(method, str) else method
    return MethodCase(f"ranks-{name}", given, rows, {**sections, "scale": scale}, ("sum", "gather"), ranks=2)


RANK_CASES = (
    over_ranks("ddp", "ddp-sft", "sft", "answers"),
    over_ranks("fsdp", "fsdp-dpo", "dpo", "pairs"),
    over_ranks("ddp", "ddp-kto", "kto", "labels"),
    over_ranks("context", "context-sft", "sft", "answers"),
    over_ranks("pipeline", "pipeline-dpo", "dpo", "pairs"),
    over_ranks("fsdp", "fsdp-full", "sft", "answers", **FULL),
    over_ranks({"name": "diloco", "inner_steps": 3}, "diloco-sft", "sft", "answers"),
    over_ranks("fsdp", "fsdp-spin", {"name": "spin", "max_completion_length": 8}, "answers"),
    over_ranks("ddp", "ddp-sdft", {**SDFT, "num_generations": 2}, "tasks", train=ONLINE),
    over_ranks("ddp", "ddp-gkd", {"name": "gkd", "teacher": TEACHER, "max_completion_length": 8}, "answers"),
    over_ranks("fsdp", "fsdp-uld", {"name": "uld", "teacher": TEACHER}, "answers"),
    over_ranks("ddp", "ddp-ebft", {
        "name": "ebft", "reference_column": "completion", "num_generations": 2, "max_completion_length": 8,
    }, "tasks", train=ONLINE),
    over_ranks("fsdp", "fsdp-self_rewarding", {
        "name": "self_rewarding", "num_generations": 2, "max_completion_length": 8,
    }, "tasks", train={**ONLINE, "batch_size": 8}),
)  # fmt: skip
"""Those over two ranks, of which one is killed and the launcher ends the other."""


def write_method_data(folder: Path) -> None:
    """Rows for all cases, from a seed, and the reward of those that draw answers."""
    (folder / "letters.py").write_text(REWARD, encoding="utf-8")
    draw = random.Random(1)

    def said(least: int, most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, most)))

    pairs = [{"prompt": said(2, 5), "chosen": said(1, 3), "rejected": said(3, 6)} for _ in range(26)]
    labels = [{"prompt": said(2, 5), "completion": said(1, 5), "label": i % 2 == 0} for i in range(26)]
    steps = [{"prompt": said(2, 5), "completions": [said(1, 3) for _ in range(3)],
              "labels": [draw.random() < 0.5 for _ in range(3)]} for _ in range(26)]  # fmt: skip
    answers = [{"prompt": row["prompt"], "completion": row["completion"]} for row in labels]
    for name, rows in (("pairs", pairs), ("labels", labels), ("steps", steps), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
