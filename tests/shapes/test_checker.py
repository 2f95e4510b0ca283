"""The checker accepts correct images and finds each kind of mistake."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageFilter

from entropy_attn.shapes.checker import UNKNOWN, check, find_objects
from entropy_attn.shapes.scenes import GROUND, Kind, Placed, Request, parse_caption, place, random_request, render

SIZE = (64, 64)
RED_CIRCLE, BLUE_SQUARE = Kind("red", "circle"), Kind("blue", "square")


def draw(*objects: tuple[Kind, float, float]) -> Image.Image:
    return render([Placed(kind, x, y, 10.0) for kind, x, y in objects], SIZE)


@pytest.mark.parametrize("side", [32, 48, 64, 96, 128, 256])
def test_the_checker_finds_what_was_rendered(side):
    rng, right, total = random.Random(side), 0, 600
    for _ in range(total):
        request = random_request(rng)
        placed = place(request, (side, side), rng)
        score = check(render(placed, (side, side)), request)
        right += score.exact and score.binding and score.relation is not False
    assert right >= 0.995 * total


def test_positions_are_accurate_to_a_pixel():
    rng = random.Random(0)
    for _ in range(100):
        placed = place(random_request(rng), SIZE, rng)
        found = find_objects(render(placed, SIZE))
        for obj in placed:
            nearest = min(found, key=lambda f: abs(f.x - obj.x) + abs(f.y - obj.y))
            assert nearest.kind == obj.kind
            assert max(abs(nearest.x - obj.x), abs(nearest.y - obj.y), abs(nearest.radius - obj.radius)) <= 1.5


@pytest.mark.parametrize(
    "objects, presence, count, binding",
    [
        ([(RED_CIRCLE, 16, 16), (BLUE_SQUARE, 46, 46)], True, True, True),
        ([(RED_CIRCLE, 16, 16)], False, False, True),  # one is missing
        ([(RED_CIRCLE, 16, 16), (BLUE_SQUARE, 46, 46), (BLUE_SQUARE, 46, 16)], True, False, True),  # one too many
        ([(Kind("blue", "circle"), 16, 16), (Kind("red", "square"), 46, 46)], False, True, False),  # swapped
        ([(RED_CIRCLE, 16, 16), (Kind("blue", "cross"), 46, 46)], False, True, False),  # wrong shape
        ([(RED_CIRCLE, 16, 16), (Kind("green", "square"), 46, 46)], False, True, False),  # wrong color
        ([(RED_CIRCLE, 16, 16), (BLUE_SQUARE, 46, 46), (Kind("green", "cross"), 46, 16)], True, False, True),
        ([], False, False, True),
    ],
)
def test_each_kind_of_wrong_answer(objects, presence, count, binding):
    score = check(draw(*objects), parse_caption("a red circle and a blue square"))
    assert (score.presence, score.count, score.binding) == (presence, count, binding)
    assert score.exact == (presence and count)
    assert score.relation is None


@pytest.mark.parametrize("relation, dx, dy", [("above", 0, -1), ("below", 0, 1), ("to the left of", -1, 0),
                                              ("to the right of", 1, 0)])  # fmt: skip
def test_relations(relation, dx, dy):
    request = Request(((RED_CIRCLE, 1), (BLUE_SQUARE, 1)), relation)
    here, there = (32 + 16 * dx, 32 + 16 * dy), (32 - 16 * dx, 32 - 16 * dy)
    assert check(draw((RED_CIRCLE, *here), (BLUE_SQUARE, *there)), request).relation is True
    assert check(draw((RED_CIRCLE, *there), (BLUE_SQUARE, *here)), request).relation is False
    assert check(draw((RED_CIRCLE, *here)), request).relation is False


def test_an_object_of_unknown_shape_counts():
    pixels = np.full((*SIZE, 3), GROUND, np.uint8)
    pixels[10:14, 5:60] = (220, 30, 30)  # a bar, which is no known shape
    (bar,) = find_objects(pixels)
    assert (bar.colour, bar.shape) == ("red", UNKNOWN)
    score = check(pixels, parse_caption("a red circle"))
    assert not score.presence and score.count and not score.binding


def test_noise_and_blur_change_nothing():
    rng = np.random.default_rng(0)
    image = draw((RED_CIRCLE, 16, 16), (BLUE_SQUARE, 46, 46)).filter(ImageFilter.GaussianBlur(0.7))
    pixels = np.clip(np.asarray(image, np.int16) + rng.integers(-12, 13, (*SIZE, 3)), 0, 255).astype(np.uint8)
    pixels[2:4, 60:62] = (20, 160, 50)
    assert check(pixels, parse_caption("a red circle and a blue square")).exact


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match=r"image: expected .*got shape \(64, 64\)"):
        find_objects(np.zeros((64, 64), np.uint8))
