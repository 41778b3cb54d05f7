"""Do two greedy answers part at a near-tie? A third party reads their common beginning in fp32 and says by how much the
two tokens differ."""

from __future__ import annotations

import json
from pathlib import Path

from meter import Meter


def main() -> None:
    """For every pair that parts: where, and the difference of the two tokens' log-probabilities in nats."""
    meter = Meter()
    spec = meter.spec
    import torch
    from transformers import AutoModelForCausalLM

    prompts = json.loads(Path(spec["prompts_file"]).read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(spec["model_folder"], dtype=torch.float32).eval()
    parted = []
    for prompt, first, second in zip(prompts, spec["first"], spec["second"], strict=False):
        at = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
        if at is None:
            continue
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *first[:at]]])).logits[0, -1]
        logprobs = logits.log_softmax(-1)
        parted.append({"at": at, "gap": float(logprobs[first[at]] - logprobs[second[at]])})
    meter.write(rows=len(spec["first"]), parted=parted)


if __name__ == "__main__":
    main()
