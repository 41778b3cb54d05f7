"""Tiny random models that see and hear with a real tokenizer, in folders as transformers writes them."""

from __future__ import annotations

import io
import json
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))  # the two modules below

from models_with_torchvision import (  # noqa: F401
    gemma3n,
    gemma4,
    internvl,
    llama4,
    ministral3,
    mistral3,
    mistral4,
    phi4_multimodal,
    smolvlm,
)
from tiny_models import OWN_TEMPLATE, SHARED, TEXT, saved, tokenizer_with

QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
GEMMA_TOKENS = ("<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<image_soft_token>", "<end_of_image>")


@pytest.fixture(scope="session")
def captions() -> Path:
    """Conversations about images; the images lie beside it."""
    path = SHARED / "data" / "vision" / "captions.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not there; set FT_SHARED to the folder with the shared data")
    return path


@pytest.fixture(scope="session")
def bad_data() -> Path:
    """The folder of deliberately broken files."""
    path = SHARED / "data" / "bad"
    if not path.is_dir():
        pytest.skip(f"{path} is not there; set FT_SHARED to the folder with the shared data")
    return path


QWEN_TOWERS: dict[str, dict[str, Any]] = {
    "Qwen2VL": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
    "Qwen2_5_VL": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "window_size": 56, "fullatt_block_indexes": [1],
    },
    "Qwen3_5": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "num_position_embeddings": 16,
    },
    "Qwen3VL": {
        "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    },
}  # fmt: skip
"""The towers that see of four generations."""


def _qwen(folders: pytest.TempPathFactory, name: str) -> Path:
    """Two layers and two in the tower that sees."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    classes: Any = transformers
    tokenizer = tokenizer_with("qwen2.5-vl.jinja", QWEN_TOKENS, eos_token="<|im_end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in QWEN_TOKENS}
    more: dict[str, Any] = {"head_dim": 8} if name in ("Qwen3VL", "Qwen3_5") else {}
    if name == "Qwen3_5":
        trl = pytest.importorskip("trl", reason="trl carries the template of Qwen3.5")
        template = Path(trl.__file__).parent / "chat_templates/qwen3_5_nothink.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8")
        more |= {
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
        }  # fmt: skip
    config = getattr(classes, f"{name}Config")(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            "bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": tokenizer.pad_token_id, **more,
        },
        vision_config=QWEN_TOWERS[name],
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=112 * 112)
    return saved(folders, config, getattr(classes, f"{name}ForConditionalGeneration"), tokenizer, processor)


@pytest.fixture(scope="session")
def qwen_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-VL."""
    return _qwen(tmp_path_factory, "Qwen2_5_VL")


@pytest.fixture(scope="session")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-VL."""
    return _qwen(tmp_path_factory, "Qwen2VL")


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3-VL."""
    return _qwen(tmp_path_factory, "Qwen3VL")


@pytest.fixture(scope="session")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen3.5, with a layer of linear attention; without thoughts, as its small models are."""
    return _qwen(tmp_path_factory, "Qwen3_5")


@pytest.fixture(scope="session")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3 with images, four tokens each."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    tokenizer = tokenizer_with(
        "gemma-3.jinja", GEMMA_TOKENS, eos_token="<end_of_turn>", bos_token="<bos>", extra_special_tokens=names
    )
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in GEMMA_TOKENS}
    config = transformers.Gemma3Config(
        text_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 1024,
            "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"],
            "bos_token_id": ids["<bos>"], "eos_token_id": ids["<end_of_turn>"],
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "patch_size": 14,
        },
        mm_tokens_per_image=4, boi_token_index=ids["<start_of_image>"], eoi_token_index=ids["<end_of_image>"],
        image_token_index=ids["<image_soft_token>"],
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 56, "width": 56})
    processor = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    return saved(tmp_path_factory, config, transformers.Gemma3ForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def glm4v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-4.1V, with a template of its own."""
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    spelled = ("<|begin_of_image|>", "<|image|>", "<|end_of_image|>", "<|video|>")
    tokenizer = tokenizer_with("chatml.jinja", ("<|im_start|>", "<|im_end|>", *spelled), eos_token="<|im_end|>")
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "".join(spelled[:3]))
    begin, image, end, video = map(tokenizer.convert_tokens_to_ids, spelled)
    config = transformers.Glm4vConfig(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5, "rope_theta": 10000.0,
            },
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 14, "image_size": 112,
        },
        image_token_id=image, video_token_id=video, image_start_token_id=begin, image_end_token_id=end,
        tie_word_embeddings=False,
    )  # fmt: skip
    processor = Glm4vImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 224 * 224})
    return saved(tmp_path_factory, config, transformers.Glm4vForConditionalGeneration, tokenizer, processor)


SLOWER = (
    "qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v", "mistral3", "ministral3", "mistral4", "internvl", "gemma4",
    "smolvlm", "gemma3n", "phi4_multimodal", "llama4",
)  # fmt: skip


@pytest.fixture(params=["qwen_vl", "gemma3", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOWER)])
def vision_model(request: pytest.FixtureRequest) -> Path:
    """Each of them."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own for prepared data."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"


RATE = 16_000
SECONDS = {"low.wav": 0.4, "high.wav": 0.9, "noise.wav": 1.6}


def tone(pitch: float, seconds: float, rate: int = RATE) -> NDArray[np.float64]:
    """A sine, (N,) between -0.5 and 0.5."""
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)


def wav(samples: NDArray[np.float64], rate: int = RATE, width: int = 2) -> bytes:
    """A WAV file of (N,) or (N, channels) samples between -1 and 1."""
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        whole += 128
    content = whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(content)
    return file.getvalue()


def part(name: str) -> dict[str, Any]:
    return {"type": "audio", "audio": f"sounds/{name}"}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


ROWS: list[list[dict[str, Any]]] = [
    [
        {"role": "user", "content": [part("low.wav"), text("What do you hear?")]},
        {"role": "assistant", "content": "A low tone."},
    ],
    [
        {"role": "user", "content": [part("high.wav"), text("Higher than"), part("noise.wav"), text("this?")]},
        {"role": "assistant", "content": "The second is noise."},
    ],
    [
        {"role": "user", "content": [part("noise.wav"), text("And now?")]},
        {"role": "assistant", "content": "Noise."},
        {"role": "user", "content": [part("high.wav")]},
        {"role": "assistant", "content": "A high tone."},
    ],
    [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "Yes."}],
]
"""Conversations about the sounds: one, two in a turn, two turns, none."""


def write_rows(folder: Path) -> Path:
    """The rows with their sounds beside them."""
    (folder / "sounds").mkdir(parents=True)
    noise = np.random.default_rng(5).uniform(-0.3, 0.3, int(SECONDS["noise.wav"] * RATE))
    made = {"low.wav": tone(220, SECONDS["low.wav"]), "high.wav": tone(1760, SECONDS["high.wav"]), "noise.wav": noise}
    for name, samples in made.items():
        (folder / "sounds" / name).write_bytes(wav(samples))
    lines = [json.dumps({"messages": messages}) + "\n" for messages in ROWS]
    (folder / "heard.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder / "heard.jsonl"


AUDIO_TOKENS = ("<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")


@pytest.fixture(scope="session")
def qwen_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2-Audio, two layers and two in the audio tower, which hears two seconds."""
    tokenizer = tokenizer_with("chatml.jinja", AUDIO_TOKENS, eos_token="<|im_end|>")
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in AUDIO_TOKENS}
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = transformers.Qwen2AudioProcessor(extractor, tokenizer)
    tokenizer.chat_template = processor.chat_template
    config = transformers.Qwen2AudioConfig(
        text_config={
            "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024, "eos_token_id": ids["<|im_end|>"], "bos_token_id": None,
            "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        },
        audio_config={
            "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "d_model": 32,
            "max_source_positions": 100,
        },
        audio_token_index=ids["<|AUDIO|>"],
    )  # fmt: skip
    made = transformers.Qwen2AudioForConditionalGeneration
    return saved(tmp_path_factory, config, made, tokenizer, processor)


@pytest.fixture(scope="session")
def glm_asr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GLM-ASR, two layers and two in the audio tower, with a template of its own that writes sounds."""
    sound = "<|pad|>"
    tokenizer = tokenizer_with("chatml.jinja", ("<|im_start|>", "<|im_end|>", sound), eos_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'audio' %}" + sound + "{% else %}{{ p.text }}{% endif %}{% endfor %}"
        "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    processor = transformers.GlmAsrProcessor(extractor, tokenizer, chat_template=tokenizer.chat_template)
    config = transformers.GlmAsrConfig(
        text_config={
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer),
            "max_position_embeddings": 1024, "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
            "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        },
        audio_config={
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_mel_bins": 16, "max_position_embeddings": 100,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids(sound),
    )  # fmt: skip
    made = transformers.GlmAsrForConditionalGeneration
    return saved(tmp_path_factory, config, made, tokenizer, processor)


@pytest.fixture(scope="session")
def voxtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Voxtral, two layers and one in the audio tower, with tokens of sounds where Mistral's tokenizers have them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    special = [
        "<unk>",
        "<|im_start|>",
        "<|im_end|>",
        *(f"[CONTROL_{n}]" for n in range(3, 24)),
        "[AUDIO]",
        "[BEGIN_AUDIO]",
    ]
    words = {token: n for n, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=words, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<unk>", additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "[AUDIO]")
    processor = transformers.VoxtralProcessor(transformers.WhisperFeatureExtractor(feature_size=16), tokenizer)
    config = transformers.VoxtralConfig(
        text_config={
            **TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": False,
        },
        audio_config={
            "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_mel_bins": 16, "max_source_positions": 1500,
        },
        audio_token_id=24,
    )  # fmt: skip
    made = transformers.VoxtralForConditionalGeneration
    return saved(tmp_path_factory, config, made, tokenizer, processor)


@pytest.fixture(params=["qwen_audio", "glm_asr"])
def audio_model(request: pytest.FixtureRequest) -> Path:
    """Each model that hears."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations about sounds."""
    return write_rows(tmp_path_factory.mktemp("heard"))


@pytest.fixture(scope="session")
def heard_rows() -> list[list[dict[str, Any]]]:
    """Their messages."""
    return ROWS


@pytest.fixture(scope="session")
def make_sound() -> Callable[..., bytes]:
    """A WAV file of a tone: pitch, seconds, and what `wav` takes."""
    return lambda pitch, seconds, rate=RATE, **how: wav(tone(pitch, seconds, rate), rate, **how)
