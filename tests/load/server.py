"""The server under load: a process that is killed and started again, and what it takes of memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import finetooth
import httpx2 as httpx
from finetooth_hooks import Sampling

TENANTS = ("amber", "birch", "cedar", "dune")


class Server:
    """`ft serve api` on a tiny model, in a folder of its own.

    Attributes:
        outages: from the kill to the first sample, by a clock that only goes on.
        memory: for each process, (seconds since it answered first, resident bytes).
    """

    def __init__(self, model: Path, folder: Path, key: str, live: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self._model, self._key = f"http://127.0.0.1:{port}", str(model), key
        self._command = [
            sys.executable, "-m", "finetooth", "serve", "api", "--model", str(model), "--folder", str(folder),
            "--port", str(port), "--replay", "2", "--live", str(live), "--set", "train.precision=fp32",
        ]  # fmt: skip
        self._log = folder.with_suffix(".log")
        self.outages: list[tuple[float, float]] = []
        self.memory: list[list[tuple[float, int]]] = []
        self._healthy = 0.0

    async def start(self) -> None:
        """Until it samples: then what it needs is imported."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        async with httpx.AsyncClient(timeout=2) as http:
            for _ in range(1200):
                if self._process.poll() is not None:
                    raise RuntimeError(self._log.read_text()[-2000:])
                try:
                    if (await http.get(f"{self.url}/health")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.1)
        async with finetooth.AsyncClient(self.url, self._key) as client:
            await (await client.sampler(self._model)).generate([5], Sampling(max_tokens=1))
        self._healthy = time.monotonic()
        self.memory.append([])

    async def kill(self) -> None:
        """SIGKILL, and start again at once."""
        begun = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        await self.start()
        self.outages.append((begun, time.monotonic()))

    async def watch(self) -> None:
        """Note the memory every second, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            if self._process.poll() is None and self.memory:
                try:
                    pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
                except (OSError, IndexError):
                    continue
                now = time.monotonic() - self._healthy
                self.memory[-1].append((round(now, 1), pages * os.sysconf("SC_PAGE_SIZE")))

    def stop(self) -> None:
        """Ctrl-C."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(120)


TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip


def make_model(folder: Path, *, vocabulary: int = 128, positions: int = 256, sizes: Mapping[str, int] = TINY) -> None:
    """Two layers, 32 wide, or other sizes; a token for each letter up to `vocabulary`; random weights from a seed."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {chr(n): n for n in range(3, vocabulary)} | {"<s>": 0, "</s>": 1, "<unk>": 2}
    core = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    fast.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, max_position_embeddings=positions, tie_word_embeddings=True, bos_token_id=0,
            eos_token_id=1, pad_token_id=1, **sizes,
        )
    ).save_pretrained(folder)  # fmt: skip


def make_keys(folder: Path) -> dict[str, str]:
    """A key by tenant."""
    from finetooth_server.keeping.records import Records
    from finetooth_server.keys import Keys

    folder.mkdir(parents=True)
    records = Records(f"sqlite:///{folder / 'service.db'}")
    made = {tenant: Keys(records).create(tenant) for tenant in TENANTS}
    records.close()
    return made
