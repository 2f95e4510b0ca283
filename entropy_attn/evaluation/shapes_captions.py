"""Captions of shapes to evaluate on, and scores by the exact checker."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from entropy_attn.evaluation.prompt_sets import Item, PromptSet
from entropy_attn.shapes.checker import check
from entropy_attn.shapes.scenes import KINDS, RELATIONS, Kind, Request, held_out, parse_caption, random_request
from entropy_attn.validation import require_int, require_one_of

SPLITS = ("seen", "held-out", "choose", "report")
CHOOSE_SHARE = 0.25


def shapes_requests(
    total: int, split: str = "seen", seed: int | str = 77, fits: Callable[[Request], bool] | None = None
) -> list[Request]:
    """Different fixed requests; a smaller `total` is the beginning of a larger one.

    Args:
        total: number of requests.
        split: "seen" have no held-out kind or pair, "held-out" all have one. "choose" and "report" divide "seen" for
            a setting that is searched on some captions and reported on others: whatever the seed, a caption is in one
            of them only, a quarter in "choose".
        seed: other seeds draw other requests.
        fits: leaves out requests for which it is false; None takes all.

    Raises:
        TypeError: `total` is no integer.
        ValueError: there is no such split, or it has fewer requests than `total`.
    """
    return list(numbered_requests(total, split, seed, fits).values())


def numbered_requests(
    total: int, split: str, seed: int | str, fits: Callable[[Request], bool] | None
) -> dict[int, Request]:
    """As `shapes_requests`: {number from 0 among the requests that are drawn without `fits`: request}."""
    require_one_of("split", split, SPLITS)
    require_int("total", total, 0)
    most = sum(fits is None or fits(request) for request in _requests_of(split))
    if total > most:
        which = "requests" if fits is None else "such requests"
        raise ValueError(f"total: expected at most {most}, the number of {which} in the split {split!r}, got {total}")
    rng = random.Random(f"{seed}-{split}")
    drawn: set[Request] = set()
    found: dict[int, Request] = {}
    while len(found) < total:
        request = random_request(rng)
        if request in drawn or not _in_split(request, split):
            continue
        if fits is None or fits(request):
            found[len(drawn)] = request
        drawn.add(request)
    return found


@functools.cache
def _requests_of(split: str) -> tuple[Request, ...]:
    """Every request that `random_request` can draw for a split."""
    return tuple(request for request in _every_request(KINDS) if _in_split(request, split))


def _every_request(kinds: tuple[Kind, ...]) -> Iterator[Request]:
    """Every request that `random_request` can draw from some kinds, once."""
    for counts in ((1,), (2,), (3,), (1, 1), (2, 1), (1, 1, 1)):
        for chosen in itertools.permutations(kinds, len(counts)):
            for relation in (None, *RELATIONS) if counts == (1, 1) else (None,):
                yield Request(tuple(zip(chosen, counts, strict=True)), relation)


def _in_split(request: Request, split: str) -> bool:
    if held_out().touches(request):
        return split == "held-out"
    if split in ("choose", "report"):
        chooses = random.Random(request.caption()).random() < CHOOSE_SHARE
        return chooses == (split == "choose")
    return split == "seen"


def shapes_prompts(total: int, split: str = "seen") -> PromptSet:
    """Captions of several kinds of objects, which a guidance can mix up: the first of `shapes_requests`.

    Raises:
        TypeError: `total` is no integer.
        ValueError: there is no such split, or it has fewer of such captions than `total`.
    """
    requests = shapes_requests(total, split, fits=lambda request: len(request.kinds) > 1)
    items = tuple(Item(str(number), request.caption(), split) for number, request in enumerate(requests))
    return PromptSet(f"shapes, {split} captions", "lines", items)


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
