"""Captions, placement and the held-out split."""

from __future__ import annotations

import itertools
import random

import pytest

from entropy_attn.shapes.scenes import (
    COLOURS,
    GAP,
    KINDS,
    SHAPES,
    Kind,
    Request,
    held_out,
    parse_caption,
    place,
    random_request,
    relation_holds,
    render,
    scene,
    training_request,
)


def test_caption_grammar():
    red, green, blue = Kind("red", "circle"), Kind("green", "cross"), Kind("blue", "square")
    assert Request(((red, 1),)).caption() == "a red circle"
    assert Request(((red, 2),)).caption() == "two red circles"
    assert Request(((red, 1), (blue, 1))).caption() == "a red circle and a blue square"
    assert Request(((green, 1), (red, 1)), "above").caption() == "a green cross above a red circle"
    assert Request(((red, 1), (blue, 1), (green, 2))).caption() == "a red circle, a blue square and two green crosses"


def test_parse_is_the_inverse_of_caption():
    rng = random.Random(0)
    for _ in range(500):
        request = random_request(rng)
        assert parse_caption(request.caption()) == request


@pytest.mark.parametrize("caption", ["", "a dog", "a pink circle", "red circle", "four red circles"])
def test_unknown_captions_are_quoted(caption):
    with pytest.raises(ValueError, match=r"expected '<a\|two\|three> <color> <shape>'"):
        parse_caption(caption)


def test_held_out_split_is_a_fifth_and_fixed():
    split = held_out()
    assert len(split.kinds) == round(0.2 * len(KINDS))
    seen = len(KINDS) - len(split.kinds)
    assert len(split.pairs) == round(0.2 * seen * (seen - 1) / 2)
    # Every word is in the training captions, so that a failure is one of composition.
    taught = [kind for kind in KINDS if kind not in split.kinds]
    assert {k.colour for k in taught} == set(COLOURS) and {k.shape for k in taught} == set(SHAPES)
    assert {str(k) for k in split.kinds} == {
        "yellow cross", "cyan square", "blue square", "red cross", "purple triangle",
    }  # fmt: skip


def test_training_never_uses_held_out_captions():
    split, rng = held_out(), random.Random(1)
    for _ in range(2000):
        kinds = training_request(rng).kinds
        assert not split.kinds & set(kinds)
        assert not any(frozenset(pair) in split.pairs for pair in itertools.combinations(kinds, 2))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 100), (200, 96)])
def test_objects_do_not_overlap_and_are_inside_the_image(size):
    rng, side = random.Random(2), min(size)
    for _ in range(50):
        request = random_request(rng)
        placed = place(request, size, rng)
        assert len(placed) == request.total
        for a, b in itertools.combinations(placed, 2):
            assert max(abs(a.x - b.x), abs(a.y - b.y)) >= a.radius + b.radius + GAP * side
        for o in placed:
            assert o.radius <= o.x <= size[1] - o.radius and o.radius <= o.y <= size[0] - o.radius
        if request.relation:
            assert relation_holds(request.relation, *placed, margin=1.0)
        assert render(placed, size).size == (size[1], size[0])


def test_too_little_space_raises():
    three = Request(((Kind("red", "circle"), 3),))
    with pytest.raises(ValueError, match="free positions for 3 objects"):
        place(three, (64, 64), random.Random(0), tries=0)


def test_a_seed_gives_one_scene():
    first, second = scene(random.Random(5)), scene(random.Random(5))
    assert first[0] == second[0] and first[1].tobytes() == second[1].tobytes()
