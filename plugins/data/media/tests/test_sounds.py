"""Opening sounds: mono samples at the model's rate, or a refusal that names the reason."""

from __future__ import annotations

import io
import re
import struct
import sys
import tracemalloc
import wave
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import DataError, install_command
from finetooth_media.sounds import open_sound
from numpy.typing import NDArray

RATE = 16_000


def wav(samples: NDArray[Any], width: int = 2, rate: int = RATE) -> bytes:
    """A WAV file of whole numbers (N, channels)."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(samples.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes())
    return file.getvalue()


def opened(content: bytes, rate: int = RATE, longest: float = 10) -> NDArray[Any]:
    return open_sound(content, "a.wav", rate, longest)


@pytest.mark.parametrize(
    ("width", "whole", "wanted"),
    [
        (1, [0, 64, 128, 255], [-1, -0.5, 0, 127 / 128]),
        (2, [-(2**15), 0, 1, 2**14], [-1, 0, 2**-15, 0.5]),
        (3, [-(2**23), 0, 1, -1, 2**22], [-1, 0, 2**-23, -(2**-23), 0.5]),
        (4, [-(2**31), 0, 2**30], [-1, 0, 0.5]),
    ],
)
def test_whole_numbers_become_samples_below_one(width: int, whole: list[int], wanted: list[float]) -> None:
    np.testing.assert_array_equal(opened(wav(np.array(whole)[:, None], width)), np.array(wanted, np.float32))


def test_channels_become_one_by_their_mean() -> None:
    stereo = np.array([[2**14, 0], [2**14, 2**14], [0, -(2**14)]])
    np.testing.assert_array_equal(opened(wav(stereo)), np.array([0.25, 0.5, -0.25], np.float32))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_soundfile_reads_the_same(width: int) -> None:
    soundfile = pytest.importorskip("soundfile")
    low, high = (0, 256) if width == 1 else (-(2 ** (8 * width - 1)), 2 ** (8 * width - 1))
    content = wav(np.random.default_rng(1).integers(low, high, (400, 1)), width)
    theirs, _ = soundfile.read(io.BytesIO(content), dtype="float32")
    np.testing.assert_allclose(opened(content), theirs, atol=1e-6)


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_other_kinds_are_soundfiles(format: str, subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = 0.5 * np.sin(np.arange(RATE) / 20).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format=format, subtype=subtype)
    np.testing.assert_allclose(opened(file.getvalue()), samples, atol=0.05 if format == "OGG" else 1e-4)


def test_another_rate_is_resampled() -> None:
    """The same tone sampled at the model's rate, apart from the ends, where a filter has no samples to either side."""
    pytest.importorskip("soxr")
    tone = {rate: np.round(2**14 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)) for rate in (RATE, 44_100)}
    found = opened(wav(tone[44_100][:, None], rate=44_100))
    assert found.shape == (RATE,)
    np.testing.assert_allclose(found[500:-500], tone[RATE][500:-500] / 2**15, atol=1e-3)


@pytest.mark.parametrize("library", ["soundfile", "soxr"])
def test_without_the_extra_it_is_said_what_to_install(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    content = b"fLaC and so on" if library == "soundfile" else wav(np.zeros((100, 1)), rate=8000)
    remedy = re.escape(install_command("finetooth[media]"))
    with pytest.raises(DataError, match=rf"audio a.wav: .*{library}.* is not installed.*{remedy}"):
        opened(content)


FINE = wav(np.arange(1000)[:, None])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"no sound at all, but a text", "not a readable sound"),
        (FINE[:20], "header is cut off"),
        (FINE[:-300], "it is cut off"),
        (wav(np.zeros((0, 1))), "no samples"),
        (wav(np.zeros((RATE * 11, 1))), r"11.0 s, more than data.processor.longest=10"),
    ],
)
def test_what_is_no_whole_sound_is_refused(content: bytes, problem: str) -> None:
    if problem.startswith("no sound"):
        pytest.importorskip("soundfile")
    with pytest.raises(DataError, match=f"^audio a.wav: .*{problem}"):
        opened(content)


def test_a_huge_one_is_refused_by_its_header() -> None:
    """It claims a day of sound and holds nothing."""
    size = 24 * 3600 * RATE * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    content = b"RIFF" + struct.pack("<I", size + 36) + b"WAVE" + form + b"data" + struct.pack("<I", size)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"more than data\.processor\.longest"):
            opened(content)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
