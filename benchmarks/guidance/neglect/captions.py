"""Captions of two to four different single objects, of any kind, and scenes that fit them."""

from __future__ import annotations

import random

import numpy as np
import torch

from entropy_attn.shapes.scenes import COLOURS, SHAPES, Kind, Request, place, render, to_array

OBJECTS = (2, 3, 4)
IMAGE_SIZE = 64
TRIES = 100_000  # of `place`: four objects fit, but few random positions do


def tokens_of(objects: int) -> int:
    """The encoded length of a caption of so many single objects, with start and end mark: a word is a token.

    "a red circle, a green square and a blue cross": three words an object, and a comma or "and" between two.
    """
    return 2 + 3 * objects + (objects - 1)


def random_caption(rng: random.Random, objects: int) -> Request:
    """Different colors and different shapes, so that each of these words belongs to one object."""
    colors, shapes = rng.sample(list(COLOURS), objects), rng.sample(SHAPES, objects)
    return Request(tuple((Kind(color, shape), 1) for color, shape in zip(colors, shapes, strict=True)))


def fixed_captions(total: int, objects: int, seed: int) -> list[Request]:
    """`total` different captions; the same for the same arguments, and for a larger total the first ones.

    Raises:
        ValueError: there are fewer.
    """
    rng, chosen = random.Random(f"{seed}/{objects}"), {}
    most = 1
    for index in range(objects):
        most *= (len(COLOURS) - index) * (len(SHAPES) - index)
    if not 0 < total <= most:
        raise ValueError(f"total: expected 1 to {most} captions of {objects} objects, got {total}")
    while len(chosen) < total:
        request = random_caption(rng, objects)
        chosen.setdefault(request.caption(), request)
    return list(chosen.values())


def examples(count: int, objects: int, seed: int) -> tuple[list[str], torch.Tensor]:
    """Captions and images (N, 3, 64, 64) uint8 to train on."""
    rng = random.Random(f"training {seed}/{objects}")
    captions, arrays = [], np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for index in range(count):
        request = random_caption(rng, objects)
        captions.append(request.caption())
        arrays[index] = to_array(render(place(request, (IMAGE_SIZE, IMAGE_SIZE), rng, TRIES), (IMAGE_SIZE,) * 2))
    return captions, torch.from_numpy(arrays).permute(0, 3, 1, 2)
