"""Where the parts of `make gpu` work: a random model, its rows, and how much is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.peers import Peer
from harness.proofs import Proof


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        shape: of a Llama with random weights, as its config names it.
        precision: weights on disk and computation.
        length: tokens of a row at most.
        rows: of a run that is timed.
        batch: rows of a step.
        rounds: runs of each contender, one after the other in turn.
        batches: of the estimates.
        drawn: prompts and steps of GRPO, answers to each prompt and their tokens.
    """

    shape: dict[str, int]
    precision: str
    length: int
    rows: int
    batch: int
    rounds: int
    batches: tuple[int, ...]
    drawn: dict[str, int]


def llama(hidden: int, ffn: int, layers: int, heads: int, kv_heads: int) -> dict[str, int]:
    """The words of a LlamaConfig."""
    return {
        "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }  # fmt: skip


FEW = {"batch_size": 2, "steps": 3, "generations": 2, "new_tokens": 4}
MANY = {"batch_size": 4, "steps": 4, "generations": 8, "new_tokens": 128}
TINY = Sizes(llama(32, 64, 2, 4, 2), "fp32", 128, 8, 4, 1, (2, 4), FEW)
CARD = Sizes(llama(2048, 8192, 16, 32, 8), "bf16", 2048, 128, 8, 3, (4, 16, 64), MANY)
LARGE = Sizes(llama(4096, 14336, 32, 32, 8), "bf16", 4096, 40, 8, 1, (4, 8, 16), MANY)
TINY_LARGE = replace(TINY, shape=llama(64, 128, 2, 4, 2))
"""What a CPU computes in place of the large one."""
SIZES = {"tiny": TINY, "card": CARD, "large": LARGE}
AGAIN = "FINETOOTH_GPU_AGAIN"
"""Variable of a process that does the rest of a part."""
VOCABULARY = 49_152
"""Tokens of the tokenizer."""


@dataclass(frozen=True)
class Ground:
    """Where the parts work.

    Attributes:
        folder: scratch.
        model: a folder with the random model.
        rows: a file with conversations.
        sizes: what is measured.
        until: when the part has to end, as `time.monotonic` has it.
        file: in which `keep` writes; None: nowhere.
        peers: those from elsewhere, by name.
    """

    folder: Path
    model: Path
    rows: Path
    sizes: Sizes
    until: float = float("inf")
    file: Path | None = None
    peers: dict[str, Peer] = field(default_factory=dict)

    def keep(self, proof: Proof) -> None:
        """Write what was found so far: if the part ends early, the page has that."""
        if self.file is not None:
            proof.save(self.file)

    def begun(self, title: str, head: tuple[str, ...]) -> Proof:
        """A proof without rows, or what `renewed` has kept."""
        if AGAIN in os.environ and self.file is not None and self.file.exists():
            return Proof.read(self.file)
        return Proof(title, [head])

    def renewed(self, proof: Proof) -> None:
        """Keep what was found. If the card no longer answers this process, as after a kernel that wrote where it must
        not, do the rest of the part in a new one."""
        import torch

        self.keep(proof)
        try:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except RuntimeError as error:
            print(f"the card no longer answers this process: {error}", flush=True)
            rest = subprocess.run([sys.executable, *sys.argv], env={**os.environ, AGAIN: "1"}, check=False)
            raise SystemExit(rest.returncode) from error

    def python(self, peer: str) -> str:
        """The interpreter that has a peer; empty: none."""
        return self.peers[peer].python if peer in self.peers else ""

    def absent(self, peer: str, name: str) -> str:
        """Why it is not there, as a sentence."""
        return f"{name} was not there: {self.peers[peer].why if peer in self.peers else 'nobody looked for it'}."

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.until - time.monotonic()

    def recipe(self, name: str, adapter: str = "lora", dropout: float = 0.1, **train: Any) -> dict[str, Any]:
        """A supervised run."""
        return {
            "model": str(self.model),
            "data": {"train": str(self.rows)},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 16, "dropout": dropout} if adapter == "lora" else adapter,
            "optimizer": {"name": "adamw", "learning_rate": 2e-4},
            "train": {
                "batch_size": self.sizes.batch, "precision": self.sizes.precision, "max_length": self.sizes.length,
                "max_steps": 4, "epochs": 9, **train,
            },
            "checkpoint": {"every": 2, "keep_last": 9},
            "trackers": [],
            "output": str(self.folder / name),
        }  # fmt: skip


def prepared(folder: Path, sizes: Sizes, rows: int, names: Path | None = None, share: float = 0.25) -> Ground:
    """A random model with a real tokenizer, and conversations.

    Args:
        names: a folder with the tokenizer; None: that of the embedded model.
        share: of a row's greatest length, how many ids are drawn at random; their text makes a few tokens more.
    """
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if names is None:
        from finetooth import session

        names = folder / "tokenizer"
        session({"model": "smollm2-135m"}, data=False).job.context.tokenizer.save(names)
    tokenizer = AutoTokenizer.from_pretrained(names)
    config = LlamaConfig(
        **sizes.shape, vocab_size=len(tokenizer), max_position_embeddings=8192, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if sizes.precision == "fp32" else torch.bfloat16)
    try:  # in its own precision from the beginning: in float32 the large one would take twice the memory
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    del model
    generator = torch.Generator().manual_seed(1)
    lines = []
    for _ in range(rows):
        words = torch.randint(100, 20_000, (int(share * sizes.length),), generator=generator).tolist()
        sides = {
            side: [{"role": role, "content": tokenizer.decode(words[at::2])}]
            for at, (side, role) in enumerate((("prompt", "user"), ("completion", "assistant")))
        }
        lines.append(json.dumps(sides))
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Ground(folder, folder / "model", folder / "rows.jsonl", sizes)


def weights_of(shape: dict[str, int]) -> tuple[int, int]:
    """Of all layers' matrices, and of the head."""
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    kv = hidden // heads * shape["num_key_value_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * shape["intermediate_size"]
    return shape["num_hidden_layers"] * layer, VOCABULARY * hidden
