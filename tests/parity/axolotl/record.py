"""Record what axolotl makes of the rows of `cases.json` under its own example configurations: tokens and labels.

Run in an environment that has it (0.19.0; nothing here does). Of what it asks for its prompts need only this:

    pip install torch==2.13.0 transformers==5.16.1 datasets==4.8.4 accelerate==1.13.0 peft==0.20.0 trl==1.9.0
    pip install pydantic==2.12.5 addict fire colorama python-dotenv
    pip install --no-deps axolotl==0.19.0
    AXOLOTL_DO_NOT_TRACK=1 python tests/parity/axolotl/record.py

It writes `masks.json` beside itself: facts about what it does, none of its text or code. The configurations are those
with which the importer is tested.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(HERE.parent / "llamafactory"))

from byte_tokenizer import write_tokenizer  # noqa: E402


def configurations() -> dict[str, dict[str, Any]]:
    """By name."""
    lines = (ROOT / "plugins/commands/importer/tests/configurations/axolotl.jsonl").read_text(encoding="utf-8")
    return {one["name"]: one["given"] for one in map(json.loads, lines.splitlines())}


def masks(given: dict[str, Any], case: dict[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a configuration's strategy makes of each row."""
    from axolotl.prompt_strategies import load
    from axolotl.prompt_tokenizers import AlpacaPromptTokenizingStrategy
    from axolotl.prompters import AlpacaPrompter
    from axolotl.utils.dict import DictDefault
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), case)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    (about,) = given["datasets"]
    settings = DictDefault({"train_on_inputs": False, **given})
    if about["type"] == "alpaca":  # what its `handle_alpaca_dataset` does, whose module imports all there is
        strategy = AlpacaPromptTokenizingStrategy(
            AlpacaPrompter(None), tokenizer, settings.train_on_inputs, settings.sequence_len
        )
    else:
        strategy = load(about["type"], tokenizer, settings, DictDefault(about))
    made = [strategy.tokenize_prompt(row) for row in rows]
    return [{"input_ids": list(row["input_ids"]), "labels": list(row["labels"])} for row in made]


def main() -> None:
    cases = json.loads((HERE / "cases.json").read_text(encoding="utf-8"))
    known, made = configurations(), dict[str, Any]()
    for name, case in cases["configurations"].items():
        made[name] = masks(known[name], case, cases["rows"][case["rows"]])
    version = importlib.metadata.version("axolotl")
    (HERE / "masks.json").write_text(json.dumps({"axolotl": version, **made}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
