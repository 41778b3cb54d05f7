"""Open encoded sounds: damaged sounds and those of an unreasonable length are refused; every kind becomes mono samples
at the model's rate.

- WAV files of whole numbers (8, 16, 24 or 32 bits) are read by the standard library. Everything else is soundfile's,
  which the extra `media` brings.
- The length is read from the header and bounded before samples are decoded.
- Channels become one by their mean.
- A sound of another rate than the model hears is resampled by soxr, which the extra `media` brings as well.
"""

from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
from finetooth_hooks import DataError, install_command
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""(N,) between -1 and 1."""

ACTION = "use another sound, or leave it out"
EXTRA = "finetooth[media]"


def open_sound(content: bytes, name: str, rate: int | None, longest: float) -> Samples:
    """The samples, mono.

    Args:
        content: the encoded file.
        name: for messages.
        rate: samples a second that the model hears; None keeps those of the file.
        longest: seconds; one that claims more is refused by its header.

    Raises:
        DataError: it is not a sound, is cut off, empty or longer, or a package that reads it is missing.
    """
    if not content:
        raise DataError("", f"audio {name}: it is empty", action=ACTION)
    try:
        samples, own = _of_wave(content, name, longest)
    except _NotPlain as reason:
        samples, own = _of_soundfile(content, name, longest, str(reason))
    if len(samples) == 0:
        raise DataError("", f"audio {name}: it has no samples", action=ACTION)
    if not np.isfinite(samples).all():
        raise DataError("", f"audio {name}: it holds samples that are not numbers", action=ACTION)
    mono = np.asarray(samples.mean(axis=1), np.float32)
    return mono if rate is None or own == rate else _resampled(mono, own, rate, name)


class _NotPlain(Exception):
    """The file is not a WAV file of integers; the text names its kind."""


def _of_wave(content: bytes, name: str, longest: float) -> tuple[NDArray[np.float32], int]:
    """(N, channels) samples and their rate, of a WAV file of whole numbers.

    Raises:
        _NotPlain: it is something else.
        DataError: it is cut off, or too long.
    """
    if not (content[:4] == b"RIFF" and content[8:12] == b"WAVE"):
        raise _NotPlain("it is not a WAV file")
    try:
        with wave.open(io.BytesIO(content)) as file:
            width, channels, rate, count = (
                file.getsampwidth(), file.getnchannels(), file.getframerate(), file.getnframes()
            )  # fmt: skip
            _check_length(name, count, rate, longest)
            read = file.readframes(count)
    except wave.Error as error:
        if "unknown format" in str(error):
            raise _NotPlain("its samples are not whole numbers") from error
        raise DataError("", f"audio {name}: it is damaged: {error}", action=ACTION) from error
    except (EOFError, ValueError, ZeroDivisionError) as error:
        raise DataError("", f"audio {name}: its header is cut off or damaged", action=ACTION) from error
    if len(read) != count * width * channels:
        raise DataError("", f"audio {name}: it is cut off", action=ACTION)
    return _numbers(read, width).reshape(-1, channels), rate


def _numbers(read: bytes, width: int) -> NDArray[np.float32]:
    """Samples between -1 and 1 of whole numbers of `width` bytes; those of one byte have no sign."""
    if width == 1:
        return np.asarray((np.frombuffer(read, np.uint8).astype(np.float32) - 128) / 128, np.float32)
    if width == 3:
        bytes_ = np.frombuffer(read, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(bytes_), 4), np.uint8)
        wide[:, 1:] = bytes_
        return np.asarray(wide.view("<i4")[:, 0] / 2**31, np.float32)
    return np.asarray(np.frombuffer(read, f"<i{width}") / 2 ** (8 * width - 1), np.float32)


def _of_soundfile(content: bytes, name: str, longest: float, reason: str) -> tuple[NDArray[np.float32], int]:
    """The same of any file that soundfile reads.

    Raises:
        DataError: it cannot read it, or is not installed.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its own library is missing
        problem = f"audio {name}: {reason}, and the package that reads other sounds (soundfile) is not installed"
        raise DataError("", problem, action=f"{install_command(EXTRA)}, or convert it to WAV") from error
    library: Any = soundfile
    try:
        with library.SoundFile(io.BytesIO(content)) as file:
            rate, count = int(file.samplerate), int(file.frames)
            _check_length(name, count, rate, longest)
            read = file.read(dtype="float32", always_2d=True)
    except library.LibsndfileError as error:
        problem = f"audio {name}: it is not a readable sound: {error.error_string}"
        raise DataError("", problem, action=ACTION) from error
    if len(read) != count:
        raise DataError("", f"audio {name}: it is cut off", action=ACTION)
    return read, rate


def _check_length(name: str, count: int, rate: int, longest: float) -> None:
    if rate < 1:
        raise DataError("", f"audio {name}: its header states {rate} samples a second", action=ACTION)
    if count > rate * longest:
        raise DataError(
            "",
            f"audio {name}: {count / rate:,.1f} s, more than data.processor.longest={longest:g}",
            action="cut it, or raise the bound",
        )


def _resampled(samples: Samples, own: int, rate: int, name: str) -> Samples:
    """
    Raises:
        DataError: soxr is not installed.
    """
    try:
        import soxr
    except ImportError as error:
        problem = f"audio {name}: it has {own:,} samples a second, the model hears {rate:,}, and soxr is not installed"
        raise DataError("", problem, action=f"{install_command(EXTRA)}, or resample it") from error
    library: Any = soxr
    return np.asarray(library.resample(samples, own, rate), np.float32)
