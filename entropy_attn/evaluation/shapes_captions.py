"""Captions of shapes to evaluate on, and scores by the exact checker."""

from __future__ import annotations

import random
from typing import Any

from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request, held_out, parse_caption, random_request
from entropy_attn.validation import require_one_of

SPLITS = ("seen", "held-out")


def shapes_requests(total: int, split: str = "seen", seed: int = 77) -> list[Request]:
    """Different fixed requests: "seen" have no held-out kind or pair, "held-out" all have one."""
    require_one_of("split", split, SPLITS)
    rng = random.Random(f"{seed}-{split}")
    chosen: dict[str, Request] = {}
    while len(chosen) < total:
        request = random_request(rng)
        if held_out().touches(request) == (split == "held-out"):
            chosen[request.caption()] = request
    return list(chosen.values())


def shapes_scores(image: Any, caption: str) -> dict[str, float]:
    """What the exact checker finds in an image: 1 or 0 for yes or no, and numbers of objects.

    `presence`: every object is there; `exact count`: the right number of objects of any kind; `binding`: no object
    mixes colors and shapes of the caption; `count error`: |found - requested|; `found`: objects.
    """
    request = parse_caption(caption)
    score = check(image, request)
    return {
        "presence": float(score.presence),
        "exact count": float(score.count),
        "binding": float(score.binding),
        "count error": float(abs(len(score.found) - request.total)),
        "found": float(len(score.found)),
    }
