"""vLLM generates: all prompts at once, greedy and sampled."""

from __future__ import annotations

import json
import os
from pathlib import Path

from meter import Meter

SHARE = 0.5
"""Of the card's memory, which it takes in advance."""


def main() -> None:
    """Generate and report."""
    meter = Meter()
    spec = meter.spec
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that this process sees its memory
    from vllm import LLM, SamplingParams

    prompts = json.loads(Path(spec["prompts_file"]).read_text(encoding="utf-8"))[: spec["prompts"]]
    model = LLM(
        spec["model_folder"],
        dtype={"bf16": "bfloat16", "fp32": "float32"}[spec["precision"]],
        max_model_len=max(map(len, prompts)) + spec["new_tokens"],
        gpu_memory_utilization=SHARE,
        enable_prefix_caching=False,  # the second pass would find what the first one read
    )
    modes = {}
    for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        how = SamplingParams(max_tokens=spec["new_tokens"], temperature=temperature, ignore_eos=True, detokenize=False)
        began = meter.now()
        answers = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
        seconds = meter.now() - began
        new = sum(len(answer.outputs[0].token_ids) for answer in answers)
        modes[mode] = {"seconds": seconds, "new_tokens": new, "tokens_per_second": new / seconds}
    meter.write(modes=modes)


if __name__ == "__main__":
    main()
