"""Workloads in which answers are drawn, scored and trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from harness.workload import LONG, MACHINE, ONCE, TUNED, TUNED_FP32, TUNED_IN_FP32, Workload, training

ASYNCHRONOUS = "prefetch 1"
ONE_AFTER_THE_OTHER = "one after the other"

ABOUT = (
    "SmolLM2-135M, LoRA rank 16 and alpha 32 on every linear layer, questions of GSM8K in the model's own chat markup, "
    "8 answers to each of 2 questions a step, of at most {tokens}, sampled at temperature 1 and scored by their share "
    "of vowels; one optimizer step on them with the loss of DAPO and no KL, AdamW at a constant 2e-4. Same questions, "
    "same order, same initial adapter; each side draws answers of its own, and both learn from what they drew. A "
    "sample is an answer that was drawn, scored and trained. Positions are those that went through the model, padding "
    "included, counted and not timed: to read the questions before answers are drawn, and to train. In fp32 TRL has "
    "its defaults but for `bf16`, which processors without such products compute many times slower; tuned it does not "
    "recompute. finetooth trains 2,048 tokens at once, half of what it takes by itself: that costs no time here and "
    "less memory."
)


def _grpo(key: str, name: str, title: str, tokens: str, sizes: Mapping[str, int]) -> Workload:
    return Workload(
        key,
        name,
        title,
        ABOUT.format(tokens=tokens),
        {
            "smoke": {"rows": 4, "batch_size": 2, "steps": 2, "generations": 2, "new_tokens": 4},
            **{form: {"batch_size": 2, "generations": 8, **sizes} for form in ("quick", "full")},
        },
        (
            replace(MACHINE, forms=LONG),
            training("finetooth bf16", "ours_grpo.py", "bf16", micro_batch_tokens=2048, forms=LONG),
            training("TRL defaults", "trl_grpo_peer.py", "bf16", home="peers", forms=LONG),
            training(
                "TRL tuned",
                "trl_grpo_peer.py",
                "bf16",
                home="peers",
                tuned={**TUNED, "per_device_batch_size": 8},
                rounds=ONCE,
                forms=LONG,
            ),
            training("finetooth fp32", "ours_grpo.py", "fp32", micro_batch_tokens=2048, forms=LONG),
            training("TRL fp32", "trl_grpo_peer.py", "fp32", home="peers", forms=LONG),
            training(TUNED_IN_FP32, "trl_grpo_peer.py", "fp32", home="peers", tuned=TUNED_FP32, forms=LONG),
        ),
    )


GRPO = _grpo("k", "grpo", "(k) GRPO", "32 tokens", {"rows": 6, "steps": 3, "new_tokens": 32})

LONG_ANSWERS = _grpo(
    "n",
    "grpo-long",
    "(n) GRPO with long answers",
    "256 tokens, as TRL has it by default",
    {"rows": 4, "steps": 2, "new_tokens": 256},
)

SLOW_REWARD = Workload(
    "l",
    "slow-reward",
    "(l) GRPO with a slow reward",
    "The run of (k) in finetooth, with a reward that takes 3 seconds for each batch of answers without computing "
    "anything, as a judge in another place does: one after the other, and with the next questions answered by the "
    "weights of before while the reward judges (`prefetch: 1`). Beside them the run whose reward takes no time, which "
    "says what a step computes: answering ahead hides at most the shorter of the two.",
    {
        "smoke": {"rows": 4, "batch_size": 2, "steps": 2, "generations": 2, "new_tokens": 4},
        **{
            form: {"rows": 24, "batch_size": 2, "steps": 12, "generations": 8, "new_tokens": 16}
            for form in ("quick", "full")
        },
    },
    (
        training(ONE_AFTER_THE_OTHER, "ours_grpo.py", "auto", reward="slow_vowels", forms=LONG),
        training(ASYNCHRONOUS, "ours_grpo.py", "auto", reward="slow_vowels", prefetch=1, forms=LONG),
        training("no time", "ours_grpo.py", "auto", forms=LONG),
    ),
)
