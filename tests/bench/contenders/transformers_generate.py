"""transformers' `generate`, of its model or of unsloth's: one batch padded on the left, greedy and sampled."""

from __future__ import annotations

import json
from pathlib import Path

from meter import Meter
from peer_model import first_import, model_of


def main() -> None:
    """Generate and report."""
    meter = Meter()
    spec = meter.spec
    first_import(spec)
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[spec["precision"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if spec.get("unsloth"):
        from unsloth import FastLanguageModel

        model = FastLanguageModel.for_inference(model_of(spec)["model"])
    else:
        model = AutoModelForCausalLM.from_pretrained(spec["model_folder"], dtype=dtype).eval().to(device)
    model.generation_config = GenerationConfig(pad_token_id=0)  # no stop token: everybody writes as many tokens
    prompts = json.loads(Path(spec["prompts_file"]).read_text(encoding="utf-8"))[: spec["prompts"]]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    modes = {}
    for mode in ("greedy", "sampled"):
        torch.manual_seed(0)
        began = meter.now()
        # temperature 1 over the whole vocabulary, as the other side samples
        chosen = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if mode == "sampled" else {}
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=spec["new_tokens"], **chosen)
        seconds = meter.now() - began
        tokens = out[:, width:].tolist()
        new = sum(map(len, tokens))
        modes[mode] = {"seconds": seconds, "new_tokens": new, "tokens_per_second": new / seconds}
        if mode == "greedy":
            greedy = tokens
    read = spec["new_tokens"] - 1  # the last new token is not read
    meter.write(
        modes=modes,
        greedy=greedy,
        passes="forward",
        positions=len(prompts) * (width + read),
        head_positions=len(prompts) * (read + 1),
        pairs=len(prompts) * (width**2 + sum(width + t for t in range(1, read + 1))),
        settings={"attention": model.config._attn_implementation},
    )


if __name__ == "__main__":
    main()
