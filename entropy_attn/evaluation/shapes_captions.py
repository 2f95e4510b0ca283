"""Captions of shapes to evaluate on, and scores by the exact checker."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from entropy_attn.evaluation.prompt_sets import Item, PromptSet
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


def shapes_prompts(total: int, split: str = "seen") -> PromptSet:
    """Captions of several kinds of objects, which a guidance can mix up: the first of `shapes_requests`."""
    drawn = total
    while True:
        several = [request for request in shapes_requests(drawn, split) if len(request.kinds) > 1]
        if len(several) >= total:
            items = tuple(Item(str(number), r.caption(), split) for number, r in enumerate(several[:total]))
            return PromptSet(f"shapes, {split} captions", "lines", items)
        drawn *= 2


def with_objects(prompts: PromptSet) -> PromptSet:
    """Captions with a phrase for each of their objects: "a red circle".

    Raises:
        ValueError: a prompt is no caption of shapes.
    """
    items = tuple(
        replace(item, objects=tuple(f"a {kind}" for kind in parse_caption(item.text).kinds)) for item in prompts.items
    )
    return replace(prompts, items=items, objects_from="the grammar of shapes")


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
