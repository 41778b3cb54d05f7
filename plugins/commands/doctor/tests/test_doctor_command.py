"""`ft doctor` on runs that are ill in one way each, on exit codes and on logs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from finetooth_doctor.catalogue import of_code
from finetooth_doctor.command import command
from finetooth_hooks import UserError


def said(*arguments):
    done = CliRunner().invoke(command, [str(one) for one in arguments], standalone_mode=False, catch_exceptions=False)
    return done.return_value, done.output


@pytest.fixture
def make(tmp_path):
    def made(losses, norms=None, evaluations=(), status="done", rate=2e-4, **result):
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "recipe.yaml").write_text("model: toy\n")
        lines = []
        for index, loss in enumerate(losses):
            norm = 0.5 if norms is None else norms[index]
            lines.append({"event": "step", "step": index + 1, "loss": loss, "grad_norm": norm})
            lines[-1] |= {"learning_rate": rate, "metrics": {}}
            if loss is None:
                lines[-1]["not_finite"] = ["loss"]
        lines += [
            {"event": "evaluation", "step": step, "name": "loss", "metrics": {"loss": value}}
            for step, value in evaluations
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if status:
            (tmp_path / "result.json").write_text(json.dumps({"status": status, "steps": len(losses), **result}))
        return tmp_path

    return made


OVERFITS = [(0, 3.0), (20, 1.0), (60, 1.2), (100, 1.5)]
FALLING = [3.0 * 0.97**step for step in range(100)]


@pytest.mark.parametrize(
    "given, told",
    [
        ({"losses": FALLING, "norms": [0.0] * 100}, "grad_norm is 0 in the last 3 steps: nothing trains"),
        ({"losses": FALLING, "norms": [500.0] * 100}, "grad_norm is 500"),
        ({"losses": [*FALLING[:50], 9.0, *FALLING[51:]]}, "step 51: the loss jumped to 9 from about"),
        ({"losses": [2.0] * 100}, "the loss stands still at 2"),
        ({"losses": [2.0, 1.9, None], "norms": [0.5, 0.6, 0.5]}, "loss is not finite; gradients were calm before"),
        ({"losses": [2.0, 1.9, None], "norms": [0.5, 60.0, 1.0]}, "gradients grew to 60 before: lower"),
        ({"losses": [2.0, 8.0, None]}, "the loss grew to 8 before: lower optimizer.learning_rate"),
        ({"losses": [2.0, None], "rate": 1e30}, "the learning rate was 1e+30, which is far too high: set"),
        ({"losses": [2.0, None], "rate": 1.0}, "gradients were calm before"),  # of optimizers that find their own
        ({"losses": [None]}, "no update came before it, so the learning rate is not why: see ft doctor weights"),
        ({"losses": FALLING, "evaluations": OVERFITS}, "after step 20, 1, and is 1.5"),
        ({"losses": FALLING[:5], "status": ""}, "was killed after step 5"),
        ({"losses": FALLING[:5], "status": "interrupted", "reason": "SIGTERM after step 5"}, "step 5; ft resume "),
        ({"losses": FALLING[:5], "status": "failed", "reason": "CUDA out of memory"}, "micro_batch_tokens"),
        (
            {"losses": [2.0, 1.9], "norms": [0.5, 60.0], "status": "failed", "reason": "loss 'y' is nan at step 3, at"},
            "step 3: loss is not finite; gradients grew to 60 before: lower",
        ),
    ],
)  # fmt: skip
def test_each_illness_is_found_with_what_to_do(make, given, told):
    code, text = said(make(**given))
    assert code == 1 and told in text


def test_a_sound_run_is_left_alone(make):
    sound = {"evaluations": [(0, 3.0), (50, 1.0), (100, 0.6)]}
    assert said(make(FALLING, **sound)) == (0, "its reports show no problem\n")
    noisy = [value * (1 + 0.2 * (-1) ** step) for step, value in enumerate(FALLING)]
    assert said(make(noisy, **sound))[0] == 0


@pytest.mark.parametrize(
    "code, told",
    [(-9, "SIGKILL: killed from outside"), (137, "SIGKILL"), (-7, "shared memory"), (-7, "DeepSpeed"), (135, "SIGBUS"),
     (139, "SIGSEGV"), (2, "bad input"), (130, "Ctrl-C"), (143, "SIGTERM"),
     (4, "a program around the run set it"), (300, "set it")],
)  # fmt: skip
def test_exit_codes_and_signals_are_explained(code, told):
    assert told in of_code(code) and f"exit code {code}" in of_code(code)


def test_a_log_is_looked_through(tmp_path):
    log = tmp_path / "out.log"
    log.write_bytes(b"\xff fine\nrank 1: NCCL error in: x.cpp\x1b[2J\nOSError: [Errno 28] No space left on device\nend")
    code, text = said("--log", log, "--exit-code", "1")
    assert code == 1 and text.startswith("exit code 1: ")
    assert "rank 1: NCCL error in: x.cpp\\x1b[2J\n  NCCL was aborted" in text and "ft runs du" in text
    log.write_text("all well")
    assert "it holds no error that ft doctor knows" in said("--log", log)[1]
    with pytest.raises(UserError, match=r"--log: .*No such file"):
        said("--log", tmp_path / "none")
    with pytest.raises(UserError, match="nothing to look at"):
        said()


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Gloo: Connection closed by peer [::1]:9",
            "lost the connection to another",
        ),
        ("torch.utils.checkpoint.CheckpointError: torch.utils.checkpoint: Recomputed values", "gradient_checkpointing"),
        ("RuntimeError: 'weight' must be 2-D", "flat pieces"),
        ("AttributeError: 'DummyOptim' object has no attribute 'step'", "DeepSpeed is configured, but did not start"),
        ("[axolotl.prompt_strategies.base.load:33] [RANK:0] unable to load strategy .gsm8k_grpo", "of its module"),
        ("TypeError: None is not a callable object", "a function that the configuration names"),
        ("TypeError: 'NoneType' object is not callable", "a function that the configuration names"),
        (
            "ValueError: generation_batch_size (8) must be divisible by num_generations (28).",
            "a multiple of num_generations",
        ),
        (
            "ValueError: The global train batch size (7 x 1) must be evenly divisible by the number of generations per "
            "prompt (8).",
            "a multiple of num_generations",
        ),
        ("TypeError: Got unsupported ScalarType BFloat16", "NumPy has no bf16"),
        ("Content end boundary is before start boundary for turn 2", "the chat template and the end-of-turn token"),
        ("RuntimeError: HIP error: invalid device function", "rocminfo"),
        ("CUDA error: no kernel image is available for execution on the device", "rocminfo"),
        (
            "RuntimeError: MPS backend out of memory (MPS allocated: 5.56 GB, other allocations: 1.10 GB, max allowed: "
            "6.80 GB). Tried to allocate 768.00 MB on private pool.",
            "shares with every other program",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "backend.attention: flash, optimizer.offload: cpu or backend.layers: host; profile:",
        ),
        (
            "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=BROADCAST)",
            "switch its prefetching off",
        ),
    ],
)  # fmt: skip
def test_an_error_of_what_a_run_stands_on_is_explained(tmp_path, line, cause):
    (tmp_path / "out.log").write_text(f"step 1\n{line}\n")
    assert cause in said("--log", tmp_path / "out.log")[1]
