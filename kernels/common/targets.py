"""The GPUs that the kernels are compiled for: plain facts, without Triton or a GPU."""

from __future__ import annotations

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")
INTERPRETER = "interpreter"

# Shared memory that one program may have, in bytes.
SHARED_MEMORY = {
    "sm_80": 166_912,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}

# How many programs run at once: of a target's largest card, since idle units cost more than a sum over a few parts.
MULTIPROCESSORS = {
    "sm_80": 108,
    "sm_89": 142,
    "sm_90": 132,
    "sm_100": 148,
    "sm_120": 188,
    "gfx942": 304,
    INTERPRETER: 1,
}


def max_registers(target: str) -> int | None:
    """NVIDIA: keeps the assembler from its occasional collapse to 32 registers."""
    return None if target.startswith("gfx") else 255


def require_target(target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
