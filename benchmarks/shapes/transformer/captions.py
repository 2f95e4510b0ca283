"""Fixed captions for an evaluation: those that choose a setting, and others that report on it."""

from __future__ import annotations

import random

from entropy_attn.shapes.scenes import Request, held_out, random_request

SPLITS = ("choose", "report")


def requests(split: str, total: int) -> list[Request]:
    """Different requests without held-out kinds and pairs; a smaller `total` is the beginning of a larger one.

    Each caption is in one split only, whatever is asked for; a quarter of them are in "choose".
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected 'choose' or 'report', got {split!r}")
    rng, chosen = random.Random(f"transformer-{split}"), {}
    while len(chosen) < total:
        request = random_request(rng)
        mine = "choose" if random.Random(request.caption()).random() < 0.25 else "report"
        if mine == split and not held_out().touches(request):
            chosen[request.caption()] = request
    return list(chosen.values())
