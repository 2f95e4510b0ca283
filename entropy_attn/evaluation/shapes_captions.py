"""Captions of shapes to evaluate on, and scores by the exact checker."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from entropy_attn.evaluation.prompt_sets import Item, PromptSet
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import Request, held_out, parse_caption, random_request
from entropy_attn.validation import require_one_of

SPLITS = ("seen", "held-out", "choose", "report")
CHOOSE_SHARE = 0.25


def shapes_requests(total: int, split: str = "seen", seed: int | str = 77) -> list[Request]:
    """Different fixed requests; a smaller `total` is the beginning of a larger one.

    Args:
        total: number of requests.
        split: "seen" have no held-out kind or pair, "held-out" all have one. "choose" and "report" divide "seen" for
            a setting that is searched on some captions and reported on others: whatever the seed, a caption is in one
            of them only, a quarter in "choose".
        seed: other seeds draw other requests.
    """
    require_one_of("split", split, SPLITS)
    rng = random.Random(f"{seed}-{split}")
    chosen: dict[str, Request] = {}
    while len(chosen) < total:
        request = random_request(rng)
        if _in_split(request, split):
            chosen[request.caption()] = request
    return list(chosen.values())


def _in_split(request: Request, split: str) -> bool:
    if held_out().touches(request):
        return split == "held-out"
    if split in ("choose", "report"):
        chooses = random.Random(request.caption()).random() < CHOOSE_SHARE
        return chooses == (split == "choose")
    return split == "seen"


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
