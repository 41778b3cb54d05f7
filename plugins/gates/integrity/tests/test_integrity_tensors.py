"""safetensors read without a framework, against the safetensors library and torch's own idea of what is finite."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from finetooth_hooks import Candidate
from finetooth_integrity.finite import FiniteGate
from finetooth_integrity.tensors import BITS, TensorProblem, not_finite, read_header
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

torch = pytest.importorskip("torch", reason="torch says what is finite")
DTYPES = ["float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]


def saved(path: Path, **tensors: object) -> Path:
    from safetensors.torch import save_file as save

    save(tensors, path)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_is_judged_as_torch_does(name, tmp_path):
    """All of them where the type has 8 or 16 bits, random ones and the special ones of wider types."""
    dtype = getattr(torch, name)
    bytes_ = torch.empty((), dtype=dtype).element_size()
    if bytes_ <= 2:
        raw = np.arange(2 ** (8 * bytes_), dtype=f"<u{bytes_}")
    else:
        special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-310, 1.0], dtype=f"<f{bytes_}").view(f"<u{bytes_}")
        random = np.random.default_rng(0).integers(0, 2 ** (8 * bytes_) - 1, 5000, dtype=np.uint64, endpoint=True)
        raw = np.concatenate([special, random.astype(f"<u{bytes_}")])
    values = torch.from_numpy(raw.view(np.uint8).copy()).view(dtype)
    (tensor,) = read_header(saved(tmp_path / "x.safetensors", x=values))
    truth = int((~torch.isfinite(values.to(torch.float64))).sum())
    assert truth > 0
    assert not_finite(tmp_path / "x.safetensors", tensor) == truth


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "complex64"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_anywhere_is_found(name, bad, tmp_path):
    values = torch.zeros(3, 1000, dtype=getattr(torch, name))
    for index in ((0, 0), (1, 500), (2, 999)):
        broken = values.clone()
        broken[index] = bad
        folder = tmp_path / str(index[1])
        (folder / "engine").mkdir(parents=True)
        saved(folder / "engine/trained.safetensors", fine=values, weights=broken)
        reason = FiniteGate().check(Candidate(1, folder))
        assert reason == "engine/trained.safetensors: weights holds 1 numbers that are not finite"


def test_tensors_larger_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("finetooth_integrity.tensors._CHUNK", 64)
    values = np.zeros(1000, dtype=np.float32)
    values[[15, 16, 999]] = np.nan
    save_file({"a": np.ones(3), "x": values}, tmp_path / "x.safetensors")
    found = {t.name: not_finite(tmp_path / "x.safetensors", t) for t in read_header(tmp_path / "x.safetensors")}
    assert found == {"a": 0, "x": 3}


def test_whole_numbers_are_never_infinite(tmp_path):
    tensors = {str(d): np.full(7, -1).astype(d) for d in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?")}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert sorted(t.name for t in found) == sorted(tensors)
    assert sum(not_finite(tmp_path / "x.safetensors", t) for t in found) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(["<f4", "<f8", "<f2", "<i8", "|u1"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_headers_are_read_as_the_library_reads_them(tmp_path_factory, given_tensors):
    path = tmp_path_factory.mktemp("x") / "x.safetensors"
    save_file({name: np.zeros(shape, dtype) for name, (dtype, shape) in given_tensors.items()}, path, {"a": "b"})
    with safe_open(path, "np") as file:
        truth = {n: (file.get_slice(n).get_dtype(), tuple(file.get_slice(n).get_shape())) for n in file.keys()}  # noqa: SIM118
    assert {t.name: (t.dtype, t.shape) for t in read_header(path)} == truth


def write(path: Path, header: object, body: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)
    return path


def tensor(start: int, end: int, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


INSANE = {
    "empty": (b"", b"", None),
    "length beyond the file": ({}, b"", 10_000),
    "absurd length": ({}, b"", 2**63),
    "no json": (b"{not json", b"", None),
    "no object": ([], b"", None),
    "trailing bytes": ({"x": tensor(0, 8)}, bytes(9), None),
    "missing bytes": ({"x": tensor(0, 8)}, bytes(7), None),
    "overlap": ({"x": tensor(0, 8), "y": tensor(4, 12)}, bytes(12), None),
    "gap": ({"x": tensor(0, 8), "y": tensor(12, 20)}, bytes(20), None),
    "wrong size": ({"x": tensor(0, 8, [3])}, bytes(8), None),
    "absurd shape": ({"x": tensor(0, 8, [2**62, 2**62])}, bytes(8), None),
    "negative": ({"x": tensor(8, 0)}, b"", None),
    "unknown type": ({"x": tensor(0, 8, dtype="F128")}, bytes(8), None),
    "type that is no text": ({"x": tensor(0, 8, dtype=[])}, bytes(8), None),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8), None),
    "twice the same": (b'{"x": {}, "x": {}}', b"", None),
}


@pytest.mark.parametrize("case", INSANE)
def test_what_the_library_refuses_is_refused(case, tmp_path):
    header, body, length = INSANE[case]
    path = write(tmp_path / "x.safetensors", header, body, length=length)
    if case == "empty":
        path.write_bytes(b"")
    with pytest.raises((SafetensorError, OverflowError)):
        safe_open(path, "np").__enter__()
    with pytest.raises(TensorProblem) as refused:
        read_header(path)
    assert "\n" not in str(refused.value)


def test_every_type_of_the_library_is_known(tmp_path):
    """safetensors names all the types it knows when it meets one it does not."""
    path = write(tmp_path / "x.safetensors", {"x": tensor(0, 8, dtype="?")}, bytes(8))
    with pytest.raises(SafetensorError, match="expected one of") as refused:
        safe_open(path, "np").__enter__()
    known = str(refused.value).split("expected one of")[1].split(" at line")[0].replace("`", "").split(",")
    assert {name.strip() for name in known} <= BITS.keys()
