"""What `ft advise` says fits: 20 made-up machines and 8 models of well-known sizes, as a table that was reviewed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_advise.advice import advise
from finetooth_advise.command import WIDEST
from finetooth_advise.made_up_machines import MAC_BACKEND, accelerator, mac, processor
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_core.planning.ways import ways
from finetooth_hooks.protocols import HardwareFacts
from known_models import FRESH, MODELS, ROOMY, choice

PARAMETERS = {
    "135M": 134_515_008, "0.5B": 494_032_768, "3B": 3_212_749_824, "8B": 8_030_261_248, "14B": 14_770_033_664,
    "32B": 32_763_876_352, "70B": 70_553_706_496, "8x7B": 46_702_792_704,
}  # fmt: skip
"""As their publishers state them."""


TABLE = """
machine  135M 0.5B 3B 8B 14B 32B 70B 8x7B
gpu-4    F    L    S  -  -   -   -   -
gpu-6    F    L    R  S  -   -   -   -
gpu-8    F    L    8  S  S   -   -   -
gpu-10   F    L    L  R  S   -   -   S
gpu-12   F    F    L  R  S   S   -   S
gpu-16   F    F    L  8  R   S   S   S
gpu-24   F    F    L  L  4   S   S   S
gpu-32   F    F    L  L  8   R   S   S
gpu-40   F    F    L  L  L   4   S   4
gpu-48   F    F    L  L  L   4   S   4
gpu-64   F    F    F  L  L   8   R   8
gpu-80   F    F    F  L  L   8   4   8
gpu-96   F    F    F  L  L   L   4   8
gpu-141  F    F    F  L  L   L   8   L
gpu-192  F    F    F  F  L   L   L   L
cpu-8    F    R    R  S  -   -   -   -
cpu-16   F    L    R  R  S   -   -   -
cpu-32   F    F    L  R  R   A   -   S
cpu-64   F    F    L  L  R   R   A   R
cpu-256  F    F    F  F  L   L   4   L
"""
"""GB of the device. Reviewed against what is known: all weights take 16 bytes each (weights, masters, gradients, two
moments), a frozen base 2, in int4 0.56 and what embeds and predicts words 2; the experts of 8x7B are stored like linear
weights, and those of the layer that computes are 2.8 GB of numbers beside them; each token keeps the activations of the
two experts that compute it. On a CPU a micro-batch of 4,096 tokens
is computed at once, whose activations are what is recomputed. Streamed, four layers are on the device beside
what embeds and predicts words (4.2 GB of 70B); the host memory around an accelerator is not known here. A base that is
quantised while it is loaded is in memory once as a whole before a CPU streams it from disk."""


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A context of each model for a machine; a folder of each holds nothing but its config. What this process holds
    already, more the more tests it ran, counts as in a fresh one; its disk has room for what is streamed from it."""
    folder = tmp_path_factory.mktemp("configs")
    state, known = State(StartOptions(blocked=("finetooth-bitsandbytes",))), {}
    for name, config in MODELS.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def context(name: str, hardware: HardwareFacts) -> Any:
        made = state.sketch({"model": str(folder / name), "adapter": "auto", "quantization": "auto"}, hardware)
        if name in known:  # parameters are counted once
            made.__dict__["base"] = known[name]
        known[name] = made.base
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetooth_torch.planning.memory.host_overhead", lambda: FRESH)
        patch.setattr("finetooth_core.planning.memory_check.shutil", SimpleNamespace(disk_usage=lambda _: ROOMY))
        yield context


def machine(text: str) -> HardwareFacts:
    kind, size = text.split("-")
    return (accelerator if kind == "gpu" else processor)(int(size) * 10**9)


@pytest.mark.slow
def test_what_is_taken_is_the_table(contexts: Any) -> None:
    _, *rows = (line.split() for line in TABLE.strip().splitlines())
    assert len(rows) == 20 and len(MODELS) == 8
    found = [
        [name, *(choice(advise(ways(contexts(model, machine(name))), rows=1000)) for model in MODELS)]
        for name, *_ in rows
    ]
    assert found == rows, "\n".join(map(" ".join, found))
    counted = {model: contexts(model, machine("gpu-24")).model.parameters for model in MODELS}
    assert counted == PARAMETERS


@pytest.mark.parametrize(("size", "taken"), [(8, "LR--"), (16, "LLR-"), (24, "FL8-"), (64, "FLL4"), (128, "FFLL")])
def test_what_a_mac_takes_is_the_table(tmp_path: Path, size: int, taken: str) -> None:
    """Reviewed like the table above; a Mac's GPU may take two thirds of its memory, above 36 GB three quarters."""
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
    state, found = State(StartOptions()), ""
    for name in ("0.5B", "3B", "8B", "32B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(MODELS[name]), encoding="utf-8")
        advised = state.ways(str(tmp_path / name), hardware=mac(size * 10**9), measure=False, backend=MAC_BACKEND)
        assert advised.parameters == PARAMETERS[name]
        found += choice(advise(advised, rows=1000))
    assert found == taken


def test_more_memory_never_gives_up_more(contexts: Any) -> None:
    order = ["F", "L", "8", "4", "R", "A", "S", "-"]
    taken = [
        order.index(choice(advise(ways(contexts("3B", machine(f"gpu-{size}"))), rows=10))) for size in range(2, 70, 4)
    ]
    assert taken == sorted(taken, reverse=True) and taken[0] >= 6 and taken[-1] == 0


def test_time_is_operations_by_the_stated_speed(contexts: Any) -> None:
    """Of a model of N parameters a token costs 6 N operations to train whole, and 4 N with the base frozen (Kaplan et
    al., 2020, arXiv:2001.08361), attention's scores aside."""
    advice = advise(ways(contexts("3B", machine("gpu-80")), length=256), rows=100, speed=1e12)
    whole, adapter = (advice.seconds(way) for way in advice.of.ways[:2])
    tokens = 100 * 256
    assert whole == pytest.approx(6 * PARAMETERS["3B"] * tokens / 1e12, rel=0.1)
    assert adapter == pytest.approx(4 * PARAMETERS["3B"] * tokens / 1e12, rel=0.15)


def test_the_command_reads_nothing_but_a_config(tmp_path: Path, ft: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["0.5B"]), encoding="utf-8")
    code, out, said = ft("advise", tmp_path, "--memory", "6GB", "--rows", "50", "--tflops", "20", "--json")
    assert code == 0, said
    told = json.loads(out)
    assert told["parameters"] == PARAMETERS["0.5B"] and told["taken"] == "lora" and told["memory"] == 6 * 10**9
    assert told["speed"] == 20e12 and told["speed_from"] == "as given with --tflops"
    full, lora, *_ = told["ways"]
    assert not full["fits"] and "would take" in full["lacks"] and lora["seconds"] > 0 and lora["source"]
    code, out, said = ft("advise", tmp_path, "--memory", "1GB")
    assert code == 0 and "nothing fits: take a smaller model" in out
    assert max(map(len, out.replace(str(tmp_path), "model").splitlines())) <= WIDEST


def test_several_models_are_a_line_each(tmp_path: Path, ft: Any) -> None:
    """Of each what the reviewed table has for it on such a machine."""
    for name in ("0.5B", "8B", "70B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(MODELS[name]), encoding="utf-8")
    folders = [str(tmp_path / name) for name in ("0.5B", "8B", "70B")]
    code, out, said = ft("advise", *folders, "--memory", "6GB", "--json")
    assert code == 0, said
    each = json.loads(out)
    assert [one["model"] for one in each] == folders and [one["taken"] for one in each][::2] == ["lora", None]
    code, out, _ = ft("advise", *folders, "--memory", "6GB")
    lines = {Path(line.split()[0]).name: line for line in out.splitlines() if str(tmp_path) in line}
    assert code == 0 and lines["0.5B"].endswith("  lora") and lines["8B"].endswith(each[1]["taken"])
    assert "nothing; the smallest way would take " in lines["70B"]
    code, _, said = ft("advise", folders[0], "nowhere/at/all")
    assert code == 2 and "nowhere" in said and said.count("\n") == 1


def test_of_several_devices_each_holds_its_part(tmp_path: Path, ft: Any) -> None:
    """FSDP divides weights, gradients and two moments (Rajbhandari et al., 2020, ZeRO, table 1: 16 bytes of a
    parameter); under DDP each device needs what one alone needs."""
    (tmp_path / "config.json").write_text(json.dumps(MODELS["8B"]), encoding="utf-8")
    code, out, said = ft("advise", tmp_path, "--memory", "80GB", "--devices", "8", "--json")
    assert code == 0, said
    advised = json.loads(out)
    _, alone, _ = ft("advise", tmp_path, "--memory", "80GB", "--json")
    ways = json.loads(alone)["ways"]
    copied = [way["strategies"]["ddp"]["memory"] for way in advised["ways"]]
    assert [of["parts"] for of in copied] == [way["memory"]["parts"] for way in ways]
    assert [way["seconds"] * 8 for way in advised["ways"]] == pytest.approx([way["seconds"] for way in ways])
    full = advised["ways"][0]["strategies"]
    parts = full["fsdp"]["memory"]["parts"]
    assert (parts["weights"], parts["optimizer"]) == (4 * PARAMETERS["8B"] // 8, 8 * PARAMETERS["8B"] // 8)
    of_layer = (PARAMETERS["8B"] - 2 * 128256 * 4096) // 32  # in bf16 two of them are whole, and embedding and head
    assert parts["gathered"] == pytest.approx(2 * (2 * of_layer + 2 * 128256 * 4096), rel=0.01)
    assert (full["ddp"]["fits"], full["fsdp"]["fits"]) == (False, True)
    assert advised["taken"] == {"way": "full", "strategy": "fsdp"}
    code, out, _ = ft("advise", tmp_path, "--memory", "24GB", "--devices", "8")
    assert code == 0 and "scale: {devices: 8, strategy: ddp}" in out
    assert max(map(len, out.replace(str(tmp_path), "model").splitlines())) <= WIDEST


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "no model is named"),
        (("CONFIG", "CONFIG", "--devices", "2", "--memory", "8GB"), "--devices needs exactly one model"),
        (("CONFIG", "--devices", "2"), "--devices: ranks on this processor share its memory"),
        (("nowhere/at/all",), "nowhere"),
        (("CONFIG", "--memory", "much"), "--memory: 'much' is not a size (write it as 24GB)"),
        (("CONFIG", "--memory", "12"), "--memory: '12' is 12 bytes, too small for a model (name the unit: 12GB)"),
        (("SIZELESS",), "its config.json lacks the model's sizes (hidden_size, num_hidden_layers, ...) (fetch"),
        (("CONFIG", "--cpu"), "--cpu needs --memory"),
        (("CONFIG", "--memory", "8GB", "--length", "99999"), "--length: 99999 is more than the 8192 positions"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, ft: Any, arguments: tuple[str, ...], problem: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["135M"]), encoding="utf-8")
    (tmp_path / "sizeless").mkdir()
    (tmp_path / "sizeless/config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    folders = {"CONFIG": str(tmp_path), "SIZELESS": str(tmp_path / "sizeless")}
    code, _, said = ft("advise", *(folders.get(one, one) for one in arguments))
    assert code == 2 and problem in said and said.count("\n") == 1


def test_a_goal_has_a_method(ft: Any) -> None:
    code, out, _ = ft("advise", "--goal")
    assert code == 0 and max(map(len, out.splitlines())) <= WIDEST
    code, out, _ = ft("advise", "--goal", "--json")
    by_method = {one["method"]: one for one in json.loads(out)}
    assert code == 0 and {"sft", "dpo", "kto", "grpo", "pretrain", "rm"} <= by_method.keys()
    assert "function that scores" in by_method["grpo"]["learns_from"] and by_method["kto"]["rows"]
