"""Reading the container: equal to the gguf package's own reader, and one clear line for every kind of damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from finetooth_hooks.errors import RecipeError
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.container import Container
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from transformers import LlamaConfig, LlamaForCausalLM

TINY = LlamaConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
)


@pytest.fixture
def tiny_path(writer: Callable[..., Path]) -> Path:
    return writer("llama", TINY, LlamaForCausalLM(TINY))


@pytest.mark.slow
def test_metadata_and_tensors_equal_the_gguf_packages_reader(smollm2: Container, smollm2_path: Path) -> None:
    peer = GGUFReader(smollm2_path)
    stated = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert dict(smollm2.metadata) == stated
    assert list(smollm2.tensors) == [tensor.name for tensor in peer.tensors]
    for tensor in peer.tensors:
        entry = smollm2.tensors[tensor.name]
        assert entry.shape == tuple(reversed(tensor.shape.tolist()))
        assert (entry.ggml_type, entry.start, entry.size) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
    last = peer.tensors[-1]
    blocks = smollm2.blocks(smollm2.tensors[last.name])
    assert np.array_equal(dequantize(blocks, last.tensor_type), dequantize(last.data, last.tensor_type))


def test_tensor_data_start_at_the_next_multiple_of_the_alignment(writer: Callable[..., Path]) -> None:
    for extra in range(1, 40, 6):  # headers of several lengths
        words = {"tokens": [f"t{i}" for i in range(63)] + ["x" * extra], "bos": 1, "eos": 2}
        path = writer("llama", TINY, LlamaForCausalLM(TINY), vocabulary=words)
        starts = {name: tensor.start for name, tensor in container.read(path).tensors.items()}
        assert starts == {tensor.name: tensor.data_offset for tensor in GGUFReader(path).tensors}


def test_scalars_of_every_type_and_nested_arrays_are_read(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    entries = [
        (text("general.architecture"), 8, text("llama")),
        *((text(f"s{i}"), i, struct.pack(f"<{code}", 1)) for i, code in [(0, "B"), (1, "b"), (2, "H"), (3, "h")]),
        *((text(f"s{i}"), i, struct.pack(f"<{code}", 1)) for i, code in [(4, "I"), (5, "i"), (6, "f"), (7, "?")]),
        *((text(f"s{i}"), i, struct.pack(f"<{code}", 1)) for i, code in [(10, "Q"), (11, "q"), (12, "d")]),
        (text("floats"), 9, struct.pack("<IQ3f", 6, 3, 0.5, 1.5, -2.0)),
        (text("words"), 9, struct.pack("<IQ", 8, 2) + text("ä") + text("")),
        (text("nested"), 9, struct.pack("<IQ", 9, 2) + struct.pack("<IQ2B", 0, 2, 7, 8) + struct.pack("<IQ", 0, 0)),
    ]
    body = b"".join(key + struct.pack("<I", kind) + value for key, kind, value in entries)
    path = tmp_path / "kinds.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries)) + body)
    found = container.read(path).metadata
    assert [found[f"s{i}"] for i in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12)] == [1] * 11
    assert found["floats"] == [0.5, 1.5, -2.0]
    assert found["words"] == ["ä", ""]
    assert found["nested"] == [[7, 8], []]


def test_a_file_cut_anywhere_is_called_truncated(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    header = container.read(tiny_path)
    data_start = min(tensor.start for tensor in header.tensors.values())
    cuts = [*range(4, data_start, 7), *range(data_start, len(whole), 4001), len(whole) - 64]
    for cut in cuts:
        path = tmp_path / "cut.bin"
        path.write_bytes(whole[:cut])
        with pytest.raises(RecipeError, match=rf"model: .*cut\.bin is truncated or damaged: it has {cut:,} bytes"):
            container.read(path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "cannot be read: the file is empty"),
        (b"PK\x03\x04 a zip", "is not a GGUF file: it starts with b'PK"),
        (b"version https://git-lfs", "is not a GGUF file"),
        (b"GG", "is not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1; versions 2 and 3 can be read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not state general.architecture"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**63), "truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 99), "metadata of unknown type 99"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2) + b"\xff\xfe", "which is not UTF-8"),
    ],
)
def test_what_is_no_gguf_file_is_named_in_one_line(content: bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as raised:
        container.read(path)
    message = str(raised.value)
    assert line in message and str(path) in message and "\n" not in message
    assert raised.value.action


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        container.read(tmp_path / "none.gguf")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        container.read(tmp_path)


def test_a_tensor_of_an_unknown_type_is_named(tiny_path: Path, tmp_path: Path) -> None:
    whole = tiny_path.read_bytes()
    name = b"blk.0.attn_v.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8  # past the number of dimensions and the two of them
    path = tmp_path / "new.gguf"
    path.write_bytes(whole[:at] + struct.pack("<I", 999) + whole[at + 4 :])
    with pytest.raises(RecipeError, match=r"stores tensor blk\.0\.attn_v\.weight as type 999"):
        container.read(path)
    path.write_bytes(whole[:at] + struct.pack("<I", GGMLQuantizationType.Q4_K) + whole[at + 4 :])
    with pytest.raises(RecipeError, match=r"Q4_K blocks of 256 cannot fill"):
        container.read(path)
