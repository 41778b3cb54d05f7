"""finetooth takes one step for each line that it is told: a side of `lockstep.py`. `python ours_steps.py SPEC`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def training(spec: dict[str, Any]) -> Iterator[Any]:
    """The loss of each step, as its repr: not a digit is lost."""
    import finetooth
    from ours import recipe

    session = finetooth.session(recipe(spec))
    for report in session.job.method.steps(session.engine):
        yield repr(report.loss)


def generation(spec: dict[str, Any]) -> Iterator[str]:
    """A digest of the tokens, all prompts anew each time."""
    import finetooth
    from ours_score import engine_recipe

    moved = importlib.util.find_spec("finetooth_hooks.sampling")  # a checkout of before has it elsewhere
    sampling_of = importlib.import_module("finetooth_hooks.sampling" if moved else "finetooth_hooks.engine").Sampling
    engine = finetooth.engine(engine_recipe(spec, spec["model_folder"]))
    prompts = json.loads(Path(spec["prompts_file"]).read_text(encoding="utf-8"))[: spec["prompts"]]
    temperature = 1.0 if spec["mode"] == "sampled" else 0.0
    sampling = sampling_of(max_tokens=spec["new_tokens"], temperature=temperature, stop_ids=(), seed=0)
    while True:
        completions = engine.generate(prompts, sampling)
        tokens = [list(of_prompt[0].tokens) for of_prompt in completions]
        yield hashlib.sha256(json.dumps(tokens).encode()).hexdigest()


def main() -> None:
    """Step when told."""
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    steps = generation(spec) if spec.get("mode") else training(spec)
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.monotonic()
        value = next(steps)
        took = {"cpu_s": time.process_time() - cpu, "wall_s": time.monotonic() - wall, "value": value}
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
