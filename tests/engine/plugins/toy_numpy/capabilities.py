"""What the toy's engine can do: `head` only if it was built with one."""

CAPABILITIES = frozenset(
    {
        "handles",
        "gradients",
        "zero_grad",
        "generate",
        "continuous",
        "full_state",
        "snapshots",
        "interrupt",
        "reference",
        "head",
        "usage",
    }
)
