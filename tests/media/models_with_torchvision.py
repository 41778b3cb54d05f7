"""Models whose processors need torchvision, and further packages of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from tiny_models import OWN_TEMPLATE, TEXT, saved, tokenizer_with

MISTRAL_TEXTS: dict[str, dict[str, Any]] = {
    "mistral": {},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral4": {
        "head_dim": None, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
        "v_head_dim": 8, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 0,
    },
}  # fmt: skip
"""What the configs of three generations say of the text."""


def _mistral3(folders: pytest.TempPathFactory, text: str) -> Path:
    """Pixtral's tower over a text of one generation, with a template of its own."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    spelled = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    tokenizer = tokenizer_with("chatml.jinja", ("<|im_start|>", "<|im_end|>", *spelled), eos_token="<|im_end|>")
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "[IMG]")
    about = {
        **TEXT, "model_type": text, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, **MISTRAL_TEXTS[text],
    }  # fmt: skip
    config = transformers.Mistral3Config(
        text_config={key: value for key, value in about.items() if value is not None or key == "bos_token_id"},
        vision_config={
            "model_type": "pixtral", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48, "head_dim": 16, "image_size": 112, "patch_size": 14,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"), spatial_merge_size=2, tie_word_embeddings=False,
    )  # fmt: skip
    images = PixtralImageProcessorPil(size={"longest_edge": 112}, patch_size=14)
    processor = transformers.PixtralProcessor(
        images, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=tokenizer.chat_template
    )
    return saved(folders, config, transformers.Mistral3ForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def mistral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral Small 3.1."""
    return _mistral3(tmp_path_factory, "mistral")


@pytest.fixture(scope="session")
def ministral3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ministral 3, whose queries grow with their positions."""
    return _mistral3(tmp_path_factory, "ministral3")


@pytest.fixture(scope="session")
def mistral4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mistral Small 4, with experts and latent attention."""
    return _mistral3(tmp_path_factory, "mistral4")


@pytest.fixture(scope="session")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InternVL 3, which cuts an image into squares, with a template of its own."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    roles = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
             "video_token": "<video>"}  # fmt: skip
    spelled = ("<|im_start|>", "<|im_end|>", *roles.values())
    tokenizer = tokenizer_with("chatml.jinja", spelled, eos_token="<|im_end|>", extra_special_tokens=roles)
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "<IMG_CONTEXT>")
    config = transformers.InternVLConfig(
        text_config={
            **TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "image_size": [56, 56], "patch_size": [14, 14],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, tie_word_embeddings=False,
    )  # fmt: skip
    images = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=4)
    processor = transformers.InternVLProcessor(
        images, tokenizer, transformers.InternVLVideoProcessor(size={"height": 56, "width": 56}), image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return saved(tmp_path_factory, config, transformers.InternVLForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 4, small: an embedding for each layer, keys and values that layers share, a tower of clipped linears."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    roles = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
             "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>"}  # fmt: skip
    spelled = ("<|im_start|>", "<|im_end|>", "<|video|>", *roles.values())
    tokenizer = tokenizer_with("chatml.jinja", spelled, eos_token="<|im_end|>", extra_special_tokens=roles)
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", roles["image_token"])
    config = transformers.Gemma4Config(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "num_hidden_layers": 4, "num_kv_shared_layers": 1,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 32, "global_head_dim": 16,
            "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": len(tokenizer),
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "head_dim": 16, "global_head_dim": 16, "intermediate_size": 48, "patch_size": 14, "pooling_kernel_size": 2,
            "position_embedding_size": 64, "use_clipped_linears": True,
        },
        audio_config=None,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image|>"),
        boi_token_id=tokenizer.convert_tokens_to_ids("<|image>"),
        eoi_token_id=tokenizer.convert_tokens_to_ids("<image|>"),
    )  # fmt: skip
    images = Gemma4ImageProcessorPil(patch_size=14, pooling_kernel_size=2, max_soft_tokens=70)
    processor = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), images, tokenizer, transformers.Gemma4VideoProcessor(),
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    return saved(tmp_path_factory, config, transformers.Gemma4ForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def gemma3n(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma 3n with a small tower of timm's in place of its own, which has 300 million parameters."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("timm", reason="timm is not installed")
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    roles = {
        "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
        "audio_token": "<audio_soft_token>", "boa_token": "<start_of_audio>", "eoa_token": "<end_of_audio>",
    }  # fmt: skip
    spelled = ("<|im_start|>", "<|im_end|>", *roles.values())
    tokenizer = tokenizer_with("chatml.jinja", spelled, eos_token="<|im_end|>", extra_special_tokens=roles)
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", roles["image_token"])
    config = transformers.Gemma3nConfig(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 32, "laurel_rank": 4,
            "hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": len(tokenizer), "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        },
        vision_config={
            "architecture": "test_convnext", "hidden_size": 64, "model_args": {}, "vocab_offset": len(tokenizer),
        },
        audio_config={
            "hidden_size": 32, "conf_num_hidden_layers": 1, "conf_num_attention_heads": 2,
            "vocab_offset": len(tokenizer) + 128,
        },
        vision_soft_tokens_per_image=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<audio_soft_token>"),
    )  # fmt: skip
    images = SiglipImageProcessorPil(size={"height": 128, "width": 128})
    processor = transformers.Gemma3nProcessor(
        transformers.Gemma3nAudioFeatureExtractor(), images, tokenizer, chat_template=tokenizer.chat_template,
        image_seq_length=16,
    )  # fmt: skip
    return saved(tmp_path_factory, config, transformers.Gemma3nForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolVLM2, which reads an image in squares and as a whole, with a template of its own."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    pytest.importorskip("num2words", reason="num2words is not installed")
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    squares = [f"<row_{row}_col_{column}>" for row in range(1, 4) for column in range(1, 4)]
    spelled = ("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<global-img>", *squares)
    tokenizer = tokenizer_with("chatml.jinja", spelled, eos_token="<|im_end|>")
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "<image>")
    config = transformers.SmolVLMConfig(
        text_config={
            **TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "image_size": 56, "patch_size": 14,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    images = SmolVLMImageProcessorPil(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    processor = transformers.SmolVLMProcessor(
        images, tokenizer, transformers.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=tokenizer.chat_template
    )
    return saved(tmp_path_factory, config, transformers.SmolVLMForConditionalGeneration, tokenizer, processor)


@pytest.fixture(scope="session")
def phi4_multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phi-4-multimodal, whose squares have 448 pixels whatever its config says, with a template of its own."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    roles = {"image_token": "<|endoftext10|>", "audio_token": "<|endoftext11|>"}
    tokenizer = tokenizer_with(
        "chatml.jinja", ("<|im_start|>", "<|im_end|>", *roles.values()), eos_token="<|im_end|>",
        extra_special_tokens=roles,
    )  # fmt: skip
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", roles["image_token"])
    image, sound = map(tokenizer.convert_tokens_to_ids, roles.values())
    config = transformers.Phi4MultimodalConfig(
        **{name: value for name, value in TEXT.items() if name != "head_dim"} | {"max_position_embeddings": 2048},
        vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "image_token_id": image,
        },
        audio_config={
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 1, "num_attention_heads": 2, "input_size": 8,
            "nemo_conv_channels": 8, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16,
            "audio_token_id": sound,
        },
    )  # fmt: skip
    images = transformers.Phi4MultimodalImageProcessor(dynamic_hd=1)
    processor = transformers.Phi4MultimodalProcessor(
        images, transformers.Phi4MultimodalFeatureExtractor(), tokenizer, chat_template=tokenizer.chat_template
    )
    return saved(tmp_path_factory, config, transformers.Phi4MultimodalForCausalLM, tokenizer, processor)


@pytest.fixture(scope="session")
def llama4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 4, whose squares are told apart by tokens of their own, with a template of its own."""
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    parts = ("<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>")
    tokenizer = tokenizer_with(
        "chatml.jinja", ("<|im_start|>", "<|im_end|>", "<|image|>", *parts), eos_token="<|im_end|>"
    )
    tokenizer.chat_template = OWN_TEMPLATE.replace("MEDIUM", "<|image|>")
    config = transformers.Llama4Config(
        text_config={
            **TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id, "num_local_experts": 4, "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 48,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128,
            "image_size": 56, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"), tie_word_embeddings=False,
    )  # fmt: skip
    images = transformers.Llama4ImageProcessor(size={"height": 56, "width": 56}, max_patches=4)
    processor = transformers.Llama4Processor(images, tokenizer, chat_template=tokenizer.chat_template)
    return saved(tmp_path_factory, config, transformers.Llama4ForConditionalGeneration, tokenizer, processor)
