"""`make torture`: kill runs a thousand times, and write the table in docs/torture.md. It can itself be interrupted and
goes on where it was.

    python tests/torture/run.py [--kills 1000] [--folder .torture]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import write_data  # type: ignore[import-not-found]
from killing import Zygote  # type: ignore[import-not-found]
from method_cases import write_method_data  # type: ignore[import-not-found]
from s3 import server  # type: ignore[import-not-found]
from trials import Arena, Result, cases, table, trials  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "torture.md"
KILLS_EACH = 4
INSTRUMENTED_EACH = 2


def main() -> int:
    """Run what has not been run yet; exit code 1 if a run came out different."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=ROOT / ".torture")
    given = parser.parse_args()
    folder: Path = given.folder.absolute()
    folder.mkdir(exist_ok=True)
    log = folder / "results.jsonl"
    done = [read(line) for line in log.read_text().splitlines()] if log.exists() else []
    model = folder / "model"
    write_data(folder)
    write_method_data(folder)
    with server() as environment:
        zygote = Zygote(environment)
        make_model(zygote, model)
        arena = Arena(zygote, folder, model)
        finished = {result.number for result in done}
        for trial in trials(-(-given.kills // KILLS_EACH), KILLS_EACH, instrumented=INSTRUMENTED_EACH):
            if trial.number in finished:
                continue
            try:
                result = arena.run(trial)
            except AssertionError as error:
                result = Result(trial.number, trial.case.name, trial.remote, trial.points, 0, (str(error)[-300:],), 0.0)
            done.append(result)
            with log.open("a") as file:
                file.write(json.dumps(result.as_json()) + "\n")
            mark = "different: " + "; ".join(result.different) if result.different else "the same"
            print(f"{trial.number} {trial.case.name}: {', '.join(result.kills) or 'no kill'}: {mark}", flush=True)
        zygote.close()
    PAGE.write_text(page(done))
    return int(any(result.different for result in done))


def make_model(zygote: Zygote, folder: Path) -> None:
    """A tiny random Llama with SmolLM2's tokenizer."""
    if (folder / "config.json").exists():
        return
    import finetooth
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = finetooth.session({"model": "smollm2-135m"}, data=False).job.context.tokenizer
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)


def read(line: str) -> Result:
    """A result from the log."""
    content = json.loads(line)
    return Result(**{**content, "kills": tuple(content["kills"]), "different": tuple(content["different"])})


def page(results: list[Result]) -> str:
    """docs/torture.md."""
    kills = sum(not kill.endswith("(never came)") for result in results for kill in result.kills)
    bad = [result for result in results if result.different]
    lines = [
        "# Runs that were killed",
        "",
        "Written by `make torture`. Each run was killed several times with SIGKILL, at random moments and at calls",
        "inside saving, renaming and sending, and went on with `ft resume`. At its end the last state, the artifact,",
        "every metric that is not a measured time or memory, and the sampled text are compared bit for bit with a run",
        "that nobody disturbed.",
        "",
        f"{len(results)} runs over {len(cases())} recipes, in which every pair of precision, adapter, dropout,",
        "accumulation, kind of data, place of saving, schedule and optimizer occurs, and in which every method learns",
        "from preferences or rewards: references that follow the policy, losses that remember, heads;",
        f"{kills} kills, {sum(result.resumed for result in results)} resumes, "
        f"{sum(result.remote for result in results)} runs with object storage beside the disk.",
        f"Runs that came out different: {len(bad)}.",
        f"Python {platform.python_version()}, {platform.machine()}, one thread.",
        "",
        *table(results),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
