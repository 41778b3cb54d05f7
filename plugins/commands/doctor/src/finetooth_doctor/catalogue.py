"""How processes end, and known errors of what a run stands on, each with what to do."""

from __future__ import annotations

import re
import signal

CODES = {
    0: "the command ended without an error",
    1: "the run failed; result.json in the run folder says why, --debug shows the traceback",
    2: "bad input: the line before says which setting, plugin or row, and what to do; nothing was trained",
    124: "a time limit ended it (timeout, or the queue's): ft resume RUN continues from the last checkpoint",
    126: "the command cannot be executed: look at its permissions",
    127: "the shell does not know this command: is the environment active, and ft in it?",
    130: "Ctrl-C: the last whole step was saved; ft resume RUN continues",
}
"""Exit codes other than signals."""

SIGNALS = {
    signal.SIGKILL: "killed from outside, nearly always by the system for lack of host memory (see dmesg) or by the "
    "queue: keep fewer rows in memory (data.train[0].max_rows, method.streaming), fewer workers, or take a "
    "smaller base or a quantised one",
    signal.SIGBUS: "a bus error: mostly /dev/shm or the disk is full, in a container with too little shared memory "
    "(docker run --ipc=host, or --shm-size=8g); with DeepSpeed also an old version of it: update it",
    signal.SIGSEGV: "a crash in compiled code: try without compiled kernels (FT_NATIVE=0, kernels: {...: torch}), "
    "and check that torch and the driver fit together",
    signal.SIGABRT: "compiled code gave up: the lines before say why; often NCCL or an assertion of a GPU kernel",
    signal.SIGTERM: "a queue, or a container that was stopped, asked it to end: the last whole step was saved; ft "
    "resume RUN continues",
    signal.SIGFPE: "an arithmetic fault in compiled code: try without compiled kernels",
    signal.SIGILL: "the processor lacks an instruction: a wheel or a compiled kernel was built for another one",
}
"""Why a process ends by a signal."""

LADDER = (
    "ft check shows what takes it; try in this order: lower train.micro_batch_tokens, train.gradient_checkpointing: "
    "true, a quantised base, lower train.max_length, an adapter instead of full training, backend.attention: flash, "
    "optimizer.offload: cpu or backend.layers: host; profile: {start: 5, steps: 1} and ft profile RUN show what is left"
)
"""What to do where a device's memory was full."""

ERRORS = (
    (r"CUDA out of memory|HIP out of memory|OutOfMemoryError", f"the device's memory was full: {LADDER}"),
    (r"MPS backend out of memory",
     "the memory that a Mac's GPU may take was full, which it shares with every other program: close some of them. "
         f"{LADDER}. PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 lifts the limit, and may bring the whole Mac to a halt"),
    (r"NCCL (error|WARN)|ncclInternalError|ncclSystemError|ProcessGroupNCCL.*(timeout|aborted)",
     "NCCL was aborted: set NCCL_DEBUG=INFO and look at the first rank that failed; often another rank died before "
     "(memory), or the network between machines"),
    (r"Watchdog caught collective operation timeout",
     "ranks waited for one that hung or took another path: the first rank without new lines says where; a trainer that "
         "prefetches rollouts asynchronously under FSDP hangs so: switch its prefetching off"),
    (r"[Gg]loo.*([Tt]imed out|Connection (closed|reset) by peer)",
     "a rank lost the connection to another: look at the rank that ended first, mostly for lack of memory"),
    (r"CheckpointError",
     "the backward pass recomputed other values than the forward pass: set train.gradient_checkpointing: false, "
         "or remove the code that patches the model; ft doctor model MODEL tries that code alone"),
    (r"'weight' must be 2-D",
     "FSDP 1 stores weights in flat pieces: set scale.strategy: fsdp here, or fsdp_version: 2 in another tool"),
    (r"device-side assert",
     "an index out of range on the GPU, mostly a token id beyond the vocabulary: run once with "
     "CUDA_LAUNCH_BLOCKING=1, or "
     "on hardware: cpu, where the error names it"),
    (r"CUDA driver version is insufficient",
     "torch and the driver do not fit together: install the torch build for the driver that nvidia-smi shows"),
    (r"no kernel image is available|HIP error: invalid device function",
     "torch has no kernels for this GPU: torch.cuda.get_arch_list() names those it has, rocminfo an AMD GPU (gfx...), "
         "nvidia-smi --query-gpu=compute_cap --format=csv an NVIDIA GPU (8.6 is sm_86); install a torch build that "
         "names it, for the CUDA version that nvidia-smi shows or the installed ROCm. On an AMD GPU "
         "HSA_OVERRIDE_GFX_VERSION=11.0.0 takes the kernels of gfx1100, which only its near relatives run"),
    (r"No space left on device",
     "the disk is full: ft runs du shows the largest runs, ft data cache the cached data; make room, then ft "
         "resume RUN"),
    (r"CAS service error", "a download from the hub broke off: set HF_HUB_DISABLE_XET=1 and try again"),
    (r"401 Client Error|403 Client Error|gated repo|Invalid (user )?token",
     "the hub refuses: log in (hf auth login) with an account that has accepted the model's terms"),
    (r"Address already in use", "another program uses that port: choose another name with --port"),
    (r"(does not|doesn't) have a (pad|padding) token|pad_token",
     "the tokenizer has no padding token: set model.special_tokens.pad_token"),
    (r"'DummyOptim' object",
     "DeepSpeed is configured, but did not start, mostly on a single GPU: remove it from the configuration there, or "
         "start with its launcher; in a recipe leave scale.strategy: deepspeed out"),
    (r"unable to load strategy|None is not a callable object|'NoneType' object is not callable",
     "mostly a function that the configuration names (a reward, a transform) and that was not found: start in the "
         "folder of its module, or install it; in a recipe name its file, as in method.rewards: [{name: "
         "python_function, file: rewards.py, function: right}]"),
    (r"divisible by (the number of generations|num_generations)",
     "a batch of rollouts has to be a multiple of num_generations: change one of the two (batch size, processes and "
         "accumulation count); in a recipe train.batch_size counts prompts, so that any num_generations fits"),
    (r"unsupported ScalarType BFloat16",
     "NumPy has no bf16: the code in the traceback turns bf16 weights into arrays, as when it sends them to a "
         "sampler; update it, or convert them to float32 (tensor.float()) or fp16 before"),
    (r"end boundary (is )?before (the )?start",
     "a message was not found between its boundaries: the chat template and the end-of-turn token do not belong "
         "together; take the model's own template and eos_token; ft data preview RECIPE shows what trains"),
    (r"GLIBC(XX)?_[\d.]+' not found", "a wheel was built for a newer system: install one for this system, or a "
         "newer image"),
    (r"Too many open files", "raise the limit: ulimit -n 65536"),
)  # fmt: skip
"""Patterns in a log, and what they mean. The first places of the list come first in an answer."""


def of_code(code: int) -> str:
    """What an exit code says; those above 128 and below 0 are signals."""
    number = -code if code < 0 else code - 128
    if code in CODES:
        return f"exit code {code}: {CODES[code]}"
    try:
        name = signal.Signals(number)
    except ValueError:
        return f"exit code {code}: a plugin or a program around the run set it; the last line of the output says why"
    return f"exit code {code}, {name.name}: {SIGNALS.get(name, 'a signal from outside ended it')}"


def in_log(text: str) -> list[str]:
    """Known errors in a log, each with the line that shows it."""
    errors = []
    for pattern, meaning in ERRORS:
        match = re.search(pattern, text)
        if match:
            begin, end = text.rfind("\n", 0, match.start()) + 1, text.find("\n", match.end())
            line = " ".join(text[begin : end if end >= 0 else len(text)].split())
            errors.append(f"{line[:160]}\n  {meaning}")
    return errors
