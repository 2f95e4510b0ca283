"""Seeds that torch's generators take."""

from __future__ import annotations

MAX_SEED = 2**64 - 1  # that of a profile's plan, which is not imported: --help is to be quick


def check_seed(option: str, seed: int) -> int:
    """The seed as it is; refused by the option's name where no generator takes it."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{option} {seed}: a whole number from 0 to {MAX_SEED} is needed")
    return seed
