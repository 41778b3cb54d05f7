"""Sampling with graphs and without, on an accelerator: the same tokens, and the time."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

from harness.ground import VOCABULARY, Ground
from harness.proofs import Proof

SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0, "drawn": True},
    "top_p 0.9": {"temperature": 1.0, "top_p": 0.9, "drawn": True},
    "top_k 50": {"temperature": 0.7, "top_k": 50, "drawn": True},
}
PROMPTS, SAMPLES = 8, 4
ENDS = range(VOCABULARY // 150)
"""Ids that end a row: of a random model one in 150 tokens, so rows end at different times."""


def graphs(ground: Ground) -> Proof:
    """Each setting with `backend.graphs: true` and `false`: every number of a token, and tokens a second.
    The first call of each warms up."""
    import finetooth
    import torch
    from finetooth_hooks.sampling import Sampling

    tokens = ground.sizes.drawn["new_tokens"]
    proof = Proof(
        f"Sampling with graphs: {PROMPTS} prompts, {SAMPLES} samples of at most {tokens} tokens",
        [("what", "graphs", "new tokens/s", "GiB", "rows that differ")],
    )
    if not torch.cuda.is_available():
        proof.notes.append("There is no accelerator: nothing was measured.")
        return proof
    prompts = [[(17 * row + 31 * at) % 20_000 + 100 for at in range(16 + 40 * row)] for row in range(PROMPTS)]
    without: dict[str, list[Any]] = {}
    for replayed in (False, True):
        recipe = ground.recipe("graphs") | {"backend": {"decoder": "stream", "graphs": replayed}}
        engine = finetooth.engine({name: value for name, value in recipe.items() if name not in ("data", "method")})
        for name, settings in SETTINGS.items():
            if ground.left <= 0:
                proof.notes.append(f"{name}, graphs {replayed}: not measured, the part's time was over.")
                continue
            sampling = Sampling(max_tokens=tokens, n=SAMPLES, seed=1, stop_ids=tuple(ENDS), **settings)
            engine.generate(prompts, sampling)
            torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            completions = [row for of_prompt in engine.generate(prompts, sampling) for row in of_prompt]
            seconds = time.perf_counter() - began
            apart = str(differing(without[name], completions)) if name in without else "-"
            if not replayed:
                without[name] = completions
            elif apart not in ("0", "-"):
                proof.failed.append(f"{name}: {apart} of {len(completions)} rows differ with graphs")
            rate = sum(len(row.tokens) for row in completions) / seconds
            held = torch.cuda.max_memory_reserved() / 2**30
            proof.rows.append((name, "yes" if replayed else "no", f"{rate:,.0f}", f"{held:.2f}", apart))
            ground.keep(proof)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
    return proof


def differing(some: Sequence[Any], others: Sequence[Any]) -> int:
    """Rows with another token, another bit of a log-probability, or other candidates."""

    def told(row: Any) -> tuple[Any, ...]:
        return row.tokens, row.logprobs, row.drawn_logprobs, row.kept, row.stop

    return sum(told(one) != told(other) for one, other in zip(some, others, strict=True))
