"""What a device cannot do is refused in one line, and what the line suggests is accepted on the same device.

Machines are made up (`machines.py`): nothing here has a GPU. Which chip can do what is as makers and projects state:
no bf16 in tensor cores before Ampere and none in RDNA 1 and 2, products in 8 bits from Ada and in CDNA 4 and RDNA 4,
MXFP8 from Blackwell, TF32 in NVIDIA's from Ampere, torch's compiler from Volta, and no Triton on RDNA 1.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from machines import GIB, Machine, as_torch_sees

FLASH = ("flash-attn", "flash-attn-3", "flash-attn-4")
BUSY = "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCompile with TORCH_USE_CUDA_DSA"
FLEX_FOR = "it is for gfx103x, gfx11x, gfx12x, gfx9x, sm_1xx, sm_7x, sm_8x and sm_9x"
USES = "leave it out, or name one that it uses: "
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "heads of 160": {"head_dim": 160},
    "heads of 512": {"head_dim": 512},
    "heads of 12": {"head_dim": 12},
    "gemma2": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "head_dim": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64, "max_position_embeddings": 131072},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_5_text": {
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "num_hidden_layers": 4,
    },
}  # fmt: skip
"""Tiny ones: type, or what is special about a Llama."""


def machine(name: str, **facts: Any) -> Machine:
    """`sm_90`, `gfx942`, `mps`, or a CPU with such instructions; all of them with flash attention's packages."""
    facts = {"packages": FLASH, **facts}
    if name.startswith("sm_"):
        return Machine(f"NVIDIA {name}", (int(name[3:-1]), int(name[-1])), 40, **facts)
    if name.startswith("gfx"):
        return Machine(f"AMD {name}", name, 40, units=60, **facts)
    return Machine("mps" if name == "mps" else "", name, 40, **facts)


@dataclass(frozen=True)
class Refusal:
    """A recipe that a machine cannot run.

    Attributes:
        on: the machine.
        settings: as on the command line; the first one is at fault.
        says: what is wrong.
        action: what to do, word for word; every alternative in it is tried.
    """

    on: Machine
    settings: str
    says: str
    action: str
    model: str = "llama"


def cannot(name: str, settings: str, says: str, action: str, model: str = "llama", **facts: Any) -> Any:
    row = Refusal(machine(name, **facts), settings, says, action, model)
    return pytest.param(row, id=f"{name}-{model.replace(' ', '')}-{settings.replace(' ', '-')}")


def attention(name: str, value: str, says: str, others: str, model: str = "llama", more: str = "", **facts: Any) -> Any:
    action = f"set backend.attention to auto or {others}"
    return cannot(name, f"backend.attention={value}{more}", says, action, model, **facts)


NO_FP8, OLD_FLASH = "train.precision=fp8: not possible on ", "it is for gfx90a, gfx942, gfx950, sm_1xx, sm_8x and sm_9x"
REFUSED = [
    cannot("sm_61", "train.precision=fp8", NO_FP8, "set train.precision to auto or fp32"),
    cannot("sm_70", "train.precision=fp8", NO_FP8, "set train.precision to auto or fp16 or fp32"),
    cannot("sm_86", "train.precision=fp8", NO_FP8, "set train.precision to auto or bf16 or fp16 or fp32"),
    cannot("gfx942", "train.precision=fp8", NO_FP8, "set train.precision to auto or bf16 or fp16 or fp32"),
    cannot("gfx1030", "train.precision=fp8", NO_FP8, "set train.precision to auto or fp16 or fp32"),
    cannot("mps", "train.precision=fp8", NO_FP8, "set train.precision to auto or bf16 or fp16 or fp32"),
    cannot("avx2", "train.precision=fp8", NO_FP8, "set train.precision to auto or fp32"),
    cannot("sm_100", "train.precision=mxfp8", "expected one of auto, fp32", "did you mean fp8?"),
    cannot("sm_100", "train.precision=nvfp4", "expected one of", 'leave it out for the default, "auto"'),
    cannot(
        "sm_89", "train.precision=fp8 quantization=int8", "the base is stored as", "set train.precision to bf16, or "
        "take a base of plain numbers",
    ),
    attention("sm_75", "flash_attention_2", f"{OLD_FLASH}, and NVIDIA sm_75", "sdpa or eager or flex"),
    attention(
        "sm_80", "flash_attention_3", "it is for sm_90, and", "flash_attention_2 or varlen or sdpa or eager or flex"
    ),
    attention(
        "sm_120", "flash_attention_4", "it is for sm_10x, sm_11x and sm_9x, and",
        "flash_attention_2 or varlen or sdpa or eager or flex",
    ),
    attention("sm_70", "flash", "nothing here computes the model's full layers", "sdpa or eager or flex"),
    attention("gfx1100", "flash", f"flash_attention_2: {OLD_FLASH}", "sdpa or eager or flex"),
    attention("avx512_bf16", "flash", "flash_attention_2: it is for cuda, not for", "sdpa or native or eager"),
    attention("mps", "flex", "it is for cuda and xpu, not for", "sdpa or eager"),
    attention("gfx906", "varlen", "it is for sm_1xx, sm_8x and sm_9x", "sdpa or eager or flex"),
    attention("sm_61", "flex", f"{FLEX_FOR}, and NVIDIA sm_61", "sdpa or eager"),
    attention("gfx1010", "flex", f"{FLEX_FOR}, and AMD gfx1010", "sdpa or eager"),
    attention(
        "sm_90", "flash_attention_3", "it computes bf16 and fp16, not fp32", "sdpa or eager or flex",
        more=" train.precision=fp32",
    ),
    attention(
        "sm_90", "flash_attention_4", "heads have 160 elements, and it takes 128",
        "flash_attention_3 or flash_attention_2 or varlen or sdpa or eager or flex", "heads of 160",
    ),
    attention(
        "sm_100", "varlen", "heads have 512 elements, and it takes 256", "sdpa or eager", "heads of 512"
    ),
    attention(
        "gfx90a", "flash_attention_2", "heads have 12 elements, and it takes multiples of 8", "sdpa or eager",
        "heads of 12",
    ),
    attention(
        "sm_86", "flex", "heads have 12 elements, and it takes multiples of 16", "sdpa or eager", "heads of 12"
    ),
    attention(
        "sm_89", "flex", "heads have 160 elements, and it takes 128",
        "flash_attention_2 or varlen or sdpa or eager", "heads of 160",
    ),
    attention("gfx1100", "flex", "heads have 160 elements, and it takes 128", "sdpa or eager", "heads of 160"),
    attention(
        "sm_89", "varlen", "the model caps its scores, and it cannot", "flash_attention_2 or eager or flex", "gemma2"
    ),
    attention(
        "gfx950", "flash_attention_2", "the model's heads have sinks, and it has none", "eager or flex", "gpt_oss"
    ),
    attention("gfx1201", "sdpa", "the model caps its scores, and it cannot", "eager or flex", "gemma2"),
    cannot(
        "sm_90", "backend.attention={full: flash_attention_4, sliding: varlen}",
        "backend.attention.sliding='varlen': the model caps its scores", "set backend.attention.sliding to auto or "
        "flash_attention_3 or flash_attention_4 or flash_attention_2 or eager or flex", "gemma2",
    ),
    cannot(
        "sm_75", "kernels.linear_logprob=triton", "NVIDIA sm_75 has compute capability 7.5, the least is 8.0",
        "set it to auto or reference or torch",
    ),
    cannot(
        "sm_75", "kernels.linear_logprob=triton", "NVIDIA sm_75 has compute capability 7.5, the least is 8.0",
        "set it to auto or reference or torch", without=("triton",),
    ),
    cannot(
        "sm_70", "kernels.linear_logprob=liger", "it has no linear_logprob, only rms_norm, rotary, gated_mlp",
        "set it to auto or reference or torch",
    ),
    cannot(
        "gfx1010", "kernels.linear_logprob=triton", "what Triton compiles writes nothing on AMD gfx1010, an RDNA 1",
        "set it to auto or reference or torch",
    ),
    cannot(
        "gfx803", "kernels.linear_logprob=triton", "Triton does not compile for gfx803",
        "set it to auto or reference or torch",
    ),
    cannot(
        "avx512_bf16", "kernels.linear_logprob=triton", "it serves linear_logprob on cuda, not on cpu",
        "set it to auto or native or reference or torch",
    ),
    cannot(
        "sm_90", "kernels.linear_logprob=native", "it serves linear_logprob on cpu, not on cuda",
        "set it to auto or reference or torch or triton",
    ),
    cannot("mps", "kernels.linear_logprob=reference", "mps has no float64", "set it to auto or torch"),
    cannot(
        "sm_80", "kernels.linear_logprob=triton", "triton is not installed; ",
        "set it to auto or reference or torch", without=("triton",),
    ),
    cannot(
        "gfx942", "kernels.rms_norm=triton", "uses no such operation in this run",
        f"{USES}accumulate, keyed_dropout, linear_logprob, logits_statistics, packed_linear, stream_decoder",
    ),
    cannot(
        "sm_75", "kernels.stream_decoder=native_stream", "flash attention needs compute capability 8.0",
        "set it to auto or native_layers",
    ),
    cannot(
        "gfx1151", "kernels.grouped_matmul=native", "it has no grouped_matmul, only",
        "set it to auto or reference or torch or triton or triton_fused or triton_split", "mixtral",
    ),
    cannot(
        "sm_75", "kernels.grouped_matmul=triton_split", "the least is 8.0", "set it to auto or reference or torch",
        "mixtral",
    ),
    cannot(
        "sm_90", "kernels.fp8_linear=ms_amp train.precision=fp8", "MS-AMP has no release for torch 2.9 and newer",
        "set it to auto or reference or torch or torchao or triton",
    ),
    cannot(
        "sm_89", "kernels.fp8_linear=torchao_mxfp8 train.precision=fp8", "needs compute capability 10.0 (Blackwell)",
        "set it to auto or reference or torch or torchao or triton",
    ),
    cannot(
        "gfx950", "kernels.fp8_linear=torchao_mxfp8 train.precision=fp8", "needs compute capability 10.0 (Blackwell)",
        "set it to auto or reference or torch or triton", without=("torchao",),
    ),
    cannot(
        "sm_61", "backend.compile=regional", "from compute capability 7.0, and NVIDIA sm_61",
        "leave backend.compile out",
    ),
    cannot(
        "gfx1010", "backend.compile=regional", "writes nothing on AMD gfx1010", "leave backend.compile out"
    ),
    cannot("gfx803", "backend.compile=regional", "Triton does not compile for gfx803", "leave backend.compile out"),
    cannot("mps", "backend.compile=regional", "torch does not compile for mps", "leave backend.compile out"),
    cannot(
        "sm_90", "backend.compile=regional", "the stream decoder computes the layers",
        "set backend.decoder: transformers, or leave backend.compile out",
    ),
    cannot(
        "sm_80", "backend.compile=regional backend.attention=varlen", "attention varlen is a function",
        "set backend.attention: sdpa, or leave backend.compile out",
    ),
    cannot(
        "gfx942", "backend.compile=regional quantization=int4", "stored in fewer bits", "leave backend.compile out"
    ),
    cannot("avx512_bf16", "backend.graphs=true", "has no graphs", "set backend.graphs to auto or false"),
    cannot("gfx1151", "backend.graphs=true", "they need decoder: stream", "set backend.graphs to auto or false"),
    cannot(
        "gfx942", "kernels.windowed_attention=native", "it has no windowed_attention, only",
        "set it to auto or reference or torch or triton", "gemma2",
    ),
    cannot(
        "gfx1010", "kernels.segment_attention=triton kernels.stream_decoder=native_layers",
        "writes nothing on AMD gfx1010", "set it to auto or reference or torch",
    ),
    cannot("sm_90", "backend.graphs=true", "no window, cap or sinks", "set backend.graphs to auto or false", "gemma2"),
    cannot("gfx1201", "backend.decoder=stream", "no plugin brings one", "set backend.decoder to auto or transformers"),
    cannot(
        "sm_120", "backend.decoder=stream train.precision=fp32", "in half precision, NVIDIA GPUs",
        "set backend.decoder to auto or transformers",
    ),
    cannot(
        "avx2", "backend.activations=host", "on a CPU the memory of the device is that of the host",
        "set backend.activations to disk, or leave it out",
    ),
    cannot(
        "mps", "backend.layers=host", "on a Mac the memory of the device is that of the host",
        "set backend.layers to disk, or leave it out",
    ),
    cannot(
        "sm_90", "backend.deterministic=true", "no deterministic sum for linear layers on a GPU",
        "set backend.deterministic to auto or false", "qwen3_5_text",
    ),
    cannot("sm_75", "backend.tf32=true", "has no TF32", "leave it out: fp16 is the fastest precision there"),
    cannot("gfx950", "backend.tf32=true", "has no TF32", "leave it out: bf16 is the fastest precision there"),
    cannot("avx2", "backend.tf32=true", "has no TF32", "leave it out: fp32 is the fastest precision there"),
    cannot(
        "avx2", "optimizer=paged_adamw_8bit", "runs on cuda, and this run computes on cpu",
        "set optimizer to adamw_8bit or adamw",
    ),
    cannot("mps", "optimizer=adamw_8bit", "runs on cpu and cuda and xpu", "set optimizer to adamw"),
    cannot("mps", "optimizer=paged_adamw", "runs on cuda, and", "set optimizer to adamw"),
    cannot("mps", "optimizer=lion_8bit", "runs on cpu and cuda and xpu", "set optimizer to lion or adamw"),
    cannot("sm_90", "hardware=cuda", "busy or unavailable)", "set hardware: auto", trouble=BUSY),
    cannot(
        "sm_70", "hardware=cuda", "has compute capability 7.0, and this build of torch is for 8.0 to 9.0",
        "set hardware: auto", build=("sm_80", "sm_90"),
    ),
    cannot(
        "gfx1030", "hardware=rocm", "is a gfx1030, and this build of torch is for gfx942, gfx1100",
        "set hardware: auto", build=("gfx942", "gfx1100"),
    ),
    cannot("sm_90", "hardware=rocm", "this build of torch has no ROCm", "set hardware: auto"),
]  # fmt: skip

SLOWER = "but slower than fp32"
ACCEPTED = [
    ("sm_70", "train.precision=bf16", SLOWER, "llama"),
    ("gfx1030", "train.precision=bf16", SLOWER, "llama"),
    ("avx2", "train.precision=bf16", SLOWER, "llama"),
    ("avx512_bf16", "train.precision=fp16", SLOWER, "llama"),
    ("sm_70", "", "fp16", "llama"),
    ("gfx906", "", "fp16", "llama"),
    *((name, "train.precision=fp8", "multiply in 8-bit", "llama") for name in ("sm_89", "sm_120", "gfx950", "gfx1201")),
    ("sm_100", "train.precision=fp8 kernels.fp8_linear=torchao_mxfp8", "torchao_mxfp8", "llama"),
    ("sm_90", "backend.attention=flash", ":flash_attention_3", "llama"),
    ("sm_90", "backend.attention=flash", ":flash_attention_3", "heads of 160"),
    ("sm_100", "backend.attention=flash", ":flash_attention_4", "llama"),
    ("sm_100", "backend.attention=flash", ":flash_attention_2", "heads of 160"),
    ("sm_120", "backend.attention=flash", ":flash_attention_2", "llama"),
    ("gfx942", "", ":flash_attention_2", "llama"),
    ("sm_90", "", "flash_attention_3", "gemma2"),
    ("sm_90", "", ":eager", "gpt_oss"),
    ("sm_90", "", ":varlen", "qwen3_5_text", ()),
    ("sm_90", "backend.compile=regional backend.decoder=transformers", ":sdpa", "llama", ()),
    ("sm_86", "backend.attention=varlen", ":varlen", "llama"),
    ("sm_75", "backend.attention=flex", ":flex", "llama"),
    ("gfx1100", "backend.attention=flex", ":flex", "gpt_oss"),
    ("gfx1201", "", "the first choice", "llama"),
    ("gfx1200", "", "AOTriton's kernels, experimental on gfx1200", "llama"),
    ("gfx1030", "", "AOTriton has none for gfx1030", "llama"),
    ("gfx1151", "kernels.linear_logprob=triton", "finetooth-triton:triton", "llama"),
    ("gfx942", "kernels.grouped_matmul=triton", "finetooth-triton:triton", "mixtral"),
    ("sm_90", "backend.compile=regional backend.decoder=transformers", "first steps take longer", "llama"),
    ("gfx942", "backend.compile=regional", "first steps take longer", "llama"),
    ("sm_80", "backend.tf32=true train.precision=fp32", "the recipe says so", "llama"),
    ("sm_80", "train.precision=fp32", "all 23 bits", "llama"),
    ("sm_90", "backend.graphs=true", "stream", "llama"),
    ("gfx90a", "backend.deterministic=true", "the recipe says so", "llama"),
    ("gfx90a", "backend.deterministic=auto", "agrees to rounding", "qwen3_5_text"),
    ("gfx1100", "backend.activations=host", "the same numbers, more time", "llama"),
    ("mps", "backend.activations=disk", "the same numbers, more time", "llama"),
    ("mps", "quantization=int4", "bf16", "llama"),
    ("gfx906", "quantization=mxfp4", "fp16", "llama"),
]
"""Machine, settings, words of the plan, model, and packages other than those of flash attention."""


@pytest.fixture(scope="module")
def recipes(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A recipe over a tiny model of each kind."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("machines")
    sizes = json.loads((tiny_llama / "config.json").read_text(encoding="utf-8"))
    keep = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
            "num_hidden_layers", "max_position_embeddings", "eos_token_id", "pad_token_id")  # fmt: skip
    rows, files = {"name": "tasks", "task": "family", "count": 8, "seed": 5}, {}
    for kind, own in MODELS.items():
        model = folder / kind.replace(" ", "_")
        shutil.copytree(tiny_llama, model)
        with torch.random.fork_rng():
            config = AutoConfig.for_model(
                "llama" if " " in kind else kind, **{**{name: sizes[name] for name in keep}, **own}
            )
            AutoModelForCausalLM.from_config(config).save_pretrained(model)
        sections = {
            "model": str(model), "data": {"train": rows, "renderer": "chatml"}, "method": "sft",
            "adapter": {"name": "lora", "rank": 2}, "train": {"batch_size": 8, "max_length": 256},
            "output": str(folder / "run"),
        }  # fmt: skip
        files[kind] = model.with_suffix(".yaml")
        files[kind].write_text(yaml.safe_dump(sections), encoding="utf-8")
    return files


@pytest.fixture
def check(
    recipes: dict[str, Path], ft: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """`ft check` on a machine: exit code and what it printed."""

    def on(of: Machine, model: str, settings: dict[str, str], *more: str) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("finetooth_torch.planning.peak_flops.measured_peak", lambda *given: 1e13)
            patch.setattr(
                "finetooth_cpu.hardware.cpu_flags", lambda: frozenset({"avx512f", "avx2", str(of.architecture)})
            )
            if of.gpu == "mps":
                settings = {"hardware": "mps", **settings}
                patch.setattr(torch.backends.mps, "is_available", lambda: True)
                patch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4 Max", raising=False)
                patch.setattr(torch.mps, "recommended_max_memory", lambda: of.memory * GIB)
            elif of.gpu:
                as_torch_sees(of, patch)
            blocked = ("-p", "no:finetooth-bitsandbytes")  # its import asks a GPU's driver
            return ft(
                *blocked, "check", recipes[model], *(f"{name}={value}" for name, value in settings.items()), *more
            )

    yield on


def given(settings: str) -> dict[str, str]:
    """`train.precision=fp8 quantization=int8` by setting."""
    return dict(pair.split("=", 1) for pair in re.split(r" (?=[a-z_.0-9]+=)", settings) if pair)


def suggested(action: str, fault: str) -> list[tuple[str, str | None]]:
    """Each change that an action names: a setting and its value; None leaves it out."""
    changes: list[tuple[str, str | None]] = []
    for setting, values in re.findall(r"set ([\w.]+) to ((?:[\w]+)(?: or [\w]+)*)", action):
        changes += [(fault if setting == "it" else setting, value) for value in values.split(" or ")]
    changes += [(setting, value) for setting, value in re.findall(r"set ([\w.]+): (\w+)", action)]
    changes += [(fault if setting == "it" else setting, None) for setting in re.findall(r"leave ([\w.]+) out", action)]
    changes += [(fault, value) for value in re.findall(r"did you mean (\w+)\?", action)]
    return changes


@pytest.mark.parametrize("row", REFUSED)
def test_it_is_refused_in_one_line(check: Callable[..., Any], row: Refusal) -> None:
    code, out, err = check(row.on, row.model, given(row.settings), "--json")
    error = json.loads(out)["error"]
    assert (code, error["exit_code"], error["action"]) == (2, 2, row.action), err
    assert err.count("\n") == 1 and err.startswith("error: ") and row.says in error["problem"], err
    assert suggested(row.action, next(iter(given(row.settings))))


@pytest.mark.slow  # several plans each
@pytest.mark.parametrize("row", REFUSED)
def test_every_suggestion_is_accepted_there(check: Callable[..., Any], row: Refusal) -> None:
    settings = given(row.settings)
    for setting, value in suggested(row.action, next(iter(settings))):
        section = setting.rpartition(".")[0]
        if section in settings:  # a part of a mapping
            changed = {section: re.sub(rf"({setting.rpartition('.')[2]}: )\w+", rf"\g<1>{value}", settings[section])}
        else:
            changed = {name: v for name, v in {**settings, setting: value}.items() if v is not None}
        code, _, err = check(row.on, row.model, changed)
        assert code == 0, (setting, value, err)


@pytest.mark.parametrize("row", ACCEPTED, ids=lambda row: "-".join(map(str, row)).replace(" ", "-"))
def test_what_the_device_can_do_is_accepted(check: Callable[..., Any], row: tuple[Any, ...]) -> None:
    name, settings, says, model, *packages = row
    code, out, err = check(machine(name, packages=packages[0] if packages else FLASH), model, given(settings), "-v")
    assert code == 0, err
    assert says in out, out


@pytest.mark.parametrize("model", ["llama", "mixtral"])
def test_a_provider_that_no_plugin_brings_is_said_before_what_the_model_uses(
    check: Callable[..., Any], model: str
) -> None:
    """Also on a dense model, which uses no such operation."""
    code, _, err = check(machine("sm_90"), model, {"kernels.grouped_matmul": "sonicmoe"})
    assert code == 2 and err.count("\n") == 1, err
    assert err.startswith("error: kernels.grouped_matmul: no kernel 'sonicmoe'; installed: "), err


@pytest.mark.slow  # what would fit is looked for
def test_a_gpu_that_other_programs_fill_is_refused_with_what_is_free(check: Callable[..., Any]) -> None:
    """Free memory and the whole are told apart; with the other programs gone, the same recipe is accepted."""
    code, _, err = check(machine("sm_80", free=0.05), "llama", {})
    assert code == 2 and err.count("\n") == 1 and " of 42.95 GB free now" in err, err
    assert "(end other programs that take memory; " in err
    assert check(machine("sm_80"), "llama", {})[0] == 0
    code, _, err = check(replace(machine("sm_80"), memory=0.25), "llama", {})
    assert code == 2 and " has 268 MB" in err and "free now" not in err and "end other programs" not in err, err


def test_a_gpu_without_its_driver_is_passed_over_with_a_note(
    check: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found 11040).", stacklevel=1)
        return False

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", gone)
    code, _, err = check(machine("avx2"), "llama", {"hardware": "cuda"})
    assert code == 2 and err.count("\n") == 1, err
    assert "(CUDA initialization: The NVIDIA driver on your system is too old (found 11040))" in err
    assert err.endswith("(set hardware: auto)\n")
    code, out, _ = check(machine("avx2"), "llama", {"hardware": "auto"})
    assert code == 0 and "finetooth-cpu:cpu" in out
