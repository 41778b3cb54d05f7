"""finetooth generates: `engine.generate`, greedy and sampled."""

from __future__ import annotations

import json
from pathlib import Path

from meter import Meter


def main() -> None:
    """Generate and report."""
    meter = Meter()
    spec = meter.spec
    import finetooth
    from finetooth_hooks.engine import Sampling

    engine = finetooth.engine(
        {
            "model": spec["model_folder"],
            "adapter": {"name": "lora", "rank": 16},
            "train": {"precision": spec["precision"], "max_length": 1024},
            "trackers": [],
            "output": str(Path(spec["scratch"]) / "run"),
        }
    )
    prompts = json.loads(Path(spec["prompts_file"]).read_text(encoding="utf-8"))[: spec["prompts"]]
    modes = {}
    for mode, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        sampling = Sampling(max_tokens=spec["new_tokens"], temperature=temperature, stop_ids=(), seed=0)
        began = meter.now()
        completions = engine.generate(prompts, sampling)
        seconds = meter.now() - began
        tokens = [list(of_prompt[0].tokens) for of_prompt in completions]
        new = sum(map(len, tokens))
        modes[mode] = {"seconds": seconds, "new_tokens": new, "tokens_per_second": new / seconds}
        if mode == "greedy":
            greedy = tokens
    meter.write(modes=modes, greedy=greedy)


if __name__ == "__main__":
    main()
