"""One part of `make gpu` in a process of its own: `python part.py SPEC RESULT`, both JSON. What it finds is written as
it comes, so that a part that crashes, hangs or is killed leaves what it had measured."""

from __future__ import annotations

import faulthandler
import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.ground import SIZES, Ground, prepared
from harness.peers import install, peers

PARTS = {
    "contact": "contact:contact", "values": "alone:values", "resume": "alone:resumed", "heads": "alone:heads",
    "large": "sides:large", "graphs": "replays:graphs", "sampling": "sides:sampling", "speed": "sides:speed",
    "estimate": "alone:estimated", "eight": "alone:eight_bits", "dpo": "sides:preferences", "grpo": "sides:rollouts",
    "logits": "alone:logits", "experts": "alone:experts", "inputs": "alone:inputs",
}  # fmt: skip
"""Module of the harness, and its function from a `Ground` to a `Proof`."""


def main() -> None:
    """Do what the spec names."""
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    left = spec["until"] - time.monotonic()
    if left < 1e6:  # where it hangs, shortly before it is killed
        faulthandler.dump_traceback_later(max(1.0, spec["killed"] - time.monotonic() - 2), exit=False)
    folder, part = Path(spec["folder"]), spec["part"]
    sizes = SIZES[spec["size"] or "tiny"]
    sizes = replace(sizes, rounds=spec["rounds"] or sizes.rounds)
    said: dict[str, Any] = {}
    if part == "about":
        import torch
        from harness.alone import about
        from harness.contact import own_hardware

        card = torch.cuda.is_available()
        size = spec["size"] or ("card" if card else "tiny")
        said = {"said": about(SIZES[size]), "size": size, "card": card, "amd": torch.version.hip is not None}
        said["missing"] = own_hardware().missing()
    elif part == "peers":
        install(folder / "peers.json", spec["until"], spec["amd"])
    elif part == "ground":
        prepared(folder, sizes, max(sizes.rows, *sizes.batches), Path(spec["tokenizer"]) if spec["tokenizer"] else None)
    else:
        ground = Ground(
            folder, folder / "model", folder / "rows.jsonl", sizes, spec["until"],
            file=Path(spec["kept"]) / f"{part}.json", peers=peers(folder / "peers.json"),
        )  # fmt: skip
        module, _, name = PARTS[part].partition(":")
        ground.keep(getattr(importlib.import_module(f"harness.{module}"), name)(ground))
    Path(sys.argv[2]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main()
