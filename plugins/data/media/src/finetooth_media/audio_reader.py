"""Reads sounds with a model's own processor: its feature extractor, and the text that its class writes for a sound.

The whole processor is called as transformers documents it, with one placeholder as text, so that the tokens are those
that the model was trained with. How many there are depends on the number of samples alone, so it is computed once for
each.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import RecipeError
from finetooth_hooks.context import Context
from finetooth_hooks.errors import DataError

from finetooth_media.reader import Placed, check_settings, explained, folder_of, stands
from finetooth_media.sounds import Samples, open_sound

OF_TEXT = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})
"""Outputs of a processor that belong to the text around a sound."""
SLACK = 0.1
"""Seconds that a feature extractor may leave out at the end, where they fill no window."""


def load(context: Context, settings: Mapping[str, Any], longest: float) -> AudioReader:
    """The reader of the recipe's model.

    Args:
        settings: of the feature extractor, to change.
        longest: seconds of a sound.

    Raises:
        RecipeError: what comes with the model does not load here, takes no sounds as others do, or knows no such
            setting.
    """
    import transformers

    info = context.model
    classes: Any = transformers
    with explained(info, "audio processor"):
        processor = classes.AutoProcessor.from_pretrained(folder_of(info))
        extractor = classes.AutoFeatureExtractor.from_pretrained(folder_of(info))
    known = set(inspect.signature(type(extractor).__init__).parameters) - {"self", "kwargs", "args"}
    check_settings("audio", settings, known)
    with explained(info, "audio processor"):
        extractor = type(extractor)(**{**extractor.to_dict(), **settings})
    if getattr(processor, "audio_token", None) is None or not hasattr(processor, "feature_extractor"):
        raise RecipeError(
            "model",
            f"{type(processor).__name__} of {info.reference} does not say which token stands for a sound",
            action="choose a model whose processor of transformers does, such as Qwen2-Audio or Gemma 3n",
        )
    processor.feature_extractor = extractor
    if info.config.get("model_type") == "voxtral":
        heard = classes.AutoConfig.from_pretrained(folder_of(info)).audio_config
        joined = heard.intermediate_size // heard.hidden_size
        return PiecesReader(processor, longest, heard.max_source_positions // joined)
    return AudioReader(processor, longest)


class AudioReader:
    """`Reader` over a processor of transformers with a feature extractor."""

    def __init__(self, processor: Any, longest: float) -> None:
        self._processor, self._longest = processor, longest
        self._rate = int(processor.feature_extractor.sampling_rate)
        self.placeholder = str(processor.audio_token)
        self.token_ids = frozenset(int(id_) for id_ in processor.audio_token_ids)
        self._spelled = processor.tokenizer.convert_ids_to_tokens(sorted(self.token_ids))
        self._places: dict[int, Placed] = {}

    def place(self, content: bytes, name: str) -> tuple[Placed, str]:
        samples = self._open(content, name)
        if len(samples) not in self._places:
            self._places[len(samples)] = self._placed(samples, name)
        return self._places[len(samples)], f"{len(samples) / self._rate:.1f} s"

    def _placed(self, samples: Samples, name: str) -> Placed:
        """
        Raises:
            DataError: the model hears less of it than all, or nothing.
        """
        made = self._made([samples])
        tokenizer = self._processor.tokenizer
        ids = [int(token) for token in made["input_ids"][0]]
        if not self.token_ids & set(ids):
            raise DataError("", f"audio {name}: it is too short for the model to hear", action="remove the row")
        heard = self._heard(made)
        if heard is not None and len(samples) / self._rate > heard + SLACK:
            seconds = f"{len(samples) / self._rate:.1f} s, and the model hears {heard:.1f} s"
            raise DataError("", f"audio {name}: {seconds}", action="cut it into several rows")
        return stands(tokenizer.decode(ids, clean_up_tokenization_spaces=False), self._spelled)

    def _heard(self, made: Mapping[str, Any]) -> float | None:
        """Seconds that the features cover; None if the feature extractor does not say how far they lie apart."""
        extractor = self._processor.feature_extractor
        hop, size = getattr(extractor, "hop_length", None), getattr(extractor, "feature_size", None)
        features = made.get("input_features")
        if not hop or not size or features is None:
            return None
        return float(np.size(features) / size * hop / self._rate)

    def inputs(self, contents: Sequence[bytes]) -> Mapping[str, Any]:
        opened = [self._open(content, f"{i + 1} of {len(contents)}") for i, content in enumerate(contents)]
        return {name: values for name, values in self._made(opened).items() if name not in OF_TEXT}

    def _made(self, sounds: Sequence[Samples]) -> dict[str, Any]:
        """The processor's inputs for sounds, each with a text that is only its placeholder."""
        made = self._processor(
            text=[self.placeholder] * len(sounds),
            audio=list(sounds),
            text_kwargs={"add_special_tokens": False, "padding": True},
            audio_kwargs={"sampling_rate": self._rate},
            common_kwargs={"return_tensors": "pt"},
        )
        return {name: np.asarray(value) for name, value in made.items()}

    def _open(self, content: bytes, name: str) -> Samples:
        return open_sound(content, name, self._rate, self._longest)

    def save(self, folder: Path) -> None:
        self._processor.to_json_file(folder / "processor_config.json")


class PiecesReader(AudioReader):
    """Sounds of Voxtral, whose processor takes none together with a text: pieces of 30 seconds, the last one filled up
    with silence. The text has a token that begins the sound and as many for each piece, as mistral-common writes it.

    Args:
        tokens: for a piece.
    """

    def __init__(self, processor: Any, longest: float, tokens: int) -> None:
        super().__init__(processor, longest)
        self._tokens, self._settings = tokens, dict(processor.audio_kwargs)
        self._frames = int(self._settings.pop("max_source_positions"))
        self._begin = str(processor.tokenizer.convert_ids_to_tokens(processor.audio_token_id + 1))

    def _placed(self, samples: Samples, name: str) -> Placed:
        """
        Raises:
            DataError: it has no samples.
        """
        if not len(samples):
            raise DataError("", f"audio {name}: it is too short for the model to hear", action="remove the row")
        pieces = -(-len(samples) // int(self._settings["pad_to_multiple_of"]))
        return stands(self._begin + self.placeholder * (self._tokens * pieces), self._spelled)

    def _made(self, sounds: Sequence[Samples]) -> dict[str, Any]:
        """Features (pieces of all sounds, mel bands, frames)."""
        extractor, pieces = self._processor.feature_extractor, []
        for sound in sounds:
            made = np.asarray(extractor(sound, **{**self._settings, "return_tensors": "np"})["input_features"])
            pieces.append(made.reshape(extractor.feature_size, -1, self._frames).swapaxes(0, 1))
        return {"input_features": np.concatenate(pieces)}
