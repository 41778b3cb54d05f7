"""The recipes, and what is given to them on the command line. Nothing in them is changed."""

from __future__ import annotations

from dataclasses import dataclass

STAND_IN = "Qwen/Qwen3-8B-Base"
"""A name that recipes know; behind it is a tiny random model."""
SMOLLM = "smollm2-135m"
"""SmolLM2-135M-Instruct, as finetooth calls it."""


@dataclass(frozen=True)
class Recipe:
    """One call of a recipe.

    Attributes:
        name: ours, for tests and the page.
        module: below `tinker_cookbook.recipes`.
        arguments: of its command line, without `log_path`.
        steps: lines that it writes to `metrics.jsonl`.
        metric: one in each of these lines.
        model: the base model that it names.
    """

    name: str
    module: str
    arguments: str
    steps: int
    metric: str
    model: str = STAND_IN

    @property
    def command(self) -> str:
        """As one types it, but for `log_path`."""
        return f"python -m tinker_cookbook.recipes.{self.module} model_name={self.model} {self.arguments}"


REWARD, NLL = "env/all/reward/total", "train_mean_nll"

CHAT = Recipe(
    "chat_sl",
    "chat_sl.train",
    "renderer_name=role_colon dataset=chat_multiturn.jsonl batch_size=8 max_steps=12 max_length=256 lora_rank=8 "
    "learning_rate=5e-3 save_every=3 eval_every=0",
    12,
    NLL,
)
SUMS = Recipe(
    "sums",
    "chat_sl.train",
    "renderer_name=role_colon dataset=sums.jsonl batch_size=8 max_steps=4 max_length=512 lora_rank=32 "
    "learning_rate=1e-3 eval_every=0",
    4,
    NLL,
    SMOLLM,
)
"""A few steps on answered sums: of itself the model is right too seldom to learn from rewards."""
ARITHMETIC = Recipe(
    "arithmetic",
    "math_rl.train",
    "env=arithmetic load_checkpoint_path=CHECKPOINT renderer_name=role_colon group_size=4 groups_per_batch=12 "
    "max_tokens=8 max_steps=16 learning_rate=1e-4 eval_every=0",
    16,
    REWARD,
    SMOLLM,
)
"""`CHECKPOINT` is what `SUMS` saved at its end."""
SHORT = (
    Recipe(
        "math_rl",
        "math_rl.train",
        "env=arithmetic renderer_name=role_colon group_size=2 groups_per_batch=2 max_steps=2 eval_every=0",
        2,
        REWARD,
    ),
    Recipe(
        "math_rl_ppo",
        "math_rl.train",
        "env=gsm8k loss_fn=ppo compute_post_kl=True renderer_name=role_colon group_size=2 groups_per_batch=2 "
        "max_steps=1 max_tokens=8 eval_every=0",
        1,
        REWARD,
    ),
    Recipe(
        "guess_number",
        "multiplayer_rl.guess_number.train",
        "renderer_name=role_colon batch_size=2 group_size=2 max_tokens=8 max_steps=1 eval_every=0",
        1,
        REWARD,
    ),
    Recipe(
        "shorter",
        "preference.shorter.train",
        "renderer_name=role_colon batch_size=2 group_size=4 max_tokens=8 max_steps=2 eval_every=0",
        2,
        REWARD,
    ),
    Recipe("sl_loop", "sl_loop", "batch_size=8 max_steps=6 max_length=256 lora_rank=8 learning_rate=5e-3", 6, NLL),
    Recipe("rl_loop", "rl_loop", "batch_size=2 group_size=2 max_tokens=8 max_steps=2 lora_rank=8", 2, "reward/total"),
    Recipe(
        "dpo",
        "preference.dpo.train",
        "dataset=hhh renderer_name=role_colon batch_size=4 max_steps=4 max_length=256 learning_rate=1e-3",
        4,
        "dpo_loss",
    ),
)
"""Those that only have to reach their end."""
ALL = (CHAT, *SHORT, SUMS, ARITHMETIC)
