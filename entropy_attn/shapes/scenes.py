"""Procedural scenes: one to three colored shapes on a plain background, and the caption that describes them.

Everything is exact and needs no weights, so `entropy_attn.shapes.checker` can score an image against its caption
without a human or a second network.
"""

from __future__ import annotations

import itertools
import random
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from entropy_attn.validation import checked_size, expected, require_int

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 160, 50),
    "blue": (30, 60, 220),
    "yellow": (245, 205, 20),
    "purple": (150, 40, 180),
    "cyan": (20, 190, 215),
}
GROUND = (240, 240, 240)

# A shape's half-width as a share of the image's shorter side: three of the largest still fit without contact.
RADIUS = (0.14, 0.19)
GAP = 0.05  # free space between two bounding boxes, same unit
SUPERSAMPLE = 4

NUMBERS = {1: "a", 2: "two", 3: "three"}
RELATIONS = ("above", "below", "to the left of", "to the right of")


@dataclass(frozen=True, order=True)
class Kind:
    """A color and a shape.

    Args:
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
    """

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)


@dataclass(frozen=True)
class Request:
    """The content of a caption.

    Args:
        counts: (kind, how many) of each kind, in the order of the caption.
        relation: one of `RELATIONS` between two single objects, or None.
    """

    counts: tuple[tuple[Kind, int], ...]
    relation: str | None = None

    @property
    def total(self) -> int:
        """Number of objects."""
        return sum(count for _, count in self.counts)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds in the order of the caption."""
        return tuple(kind for kind, _ in self.counts)

    def caption(self) -> str:
        """The caption.

        Returns:
            A text such as "a red circle, a blue square and two green crosses".
        """
        parts = [_phrase(kind, count) for kind, count in self.counts]
        if self.relation is not None:
            return f"{parts[0]} {self.relation} {parts[1]}"
        return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


@dataclass(frozen=True)
class Placed:
    """An object placed in an image.

    Args:
        kind: color and shape.
        x: horizontal center in pixels.
        y: vertical center in pixels.
        radius: half of its width in pixels.
    """

    kind: Kind
    x: float
    y: float
    radius: float


def _phrase(kind: Kind, count: int) -> str:
    plural = "" if count == 1 else "es" if kind.shape == "cross" else "s"
    return f"{NUMBERS[count]} {kind}{plural}"


_OBJECT = re.compile(rf"^(a|two|three) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(?:e?s)?$")


def parse_caption(caption: str) -> Request:
    """Parse a caption of this module's grammar.

    Args:
        caption: a text such as "a red circle and two blue squares" or "a red circle above a blue square".

    Returns:
        The request.

    Raises:
        TypeError: `caption` is no string.
        ValueError: `caption` does not follow the grammar; the message quotes the part in question.
    """
    if not isinstance(caption, str):
        raise TypeError(expected("caption", "a string", caption))
    relation = next((r for r in RELATIONS if f" {r} " in caption), None)
    parts = caption.split(f" {relation} ") if relation else re.split(r", | and ", caption)
    counts = []
    for part in parts:
        match = _OBJECT.match(part.strip().lower())
        if match is None:
            raise ValueError(
                f"caption: expected '<a|two|three> <color> <shape>' with a color of {', '.join(COLOURS)} and a shape "
                f"of {', '.join(SHAPES)}, got {part!r} in {caption!r}"
            )
        number, colour, shape = match.groups()
        counts.append((Kind(colour, shape), next(n for n, word in NUMBERS.items() if word == number)))
    return Request(tuple(counts), relation)


@dataclass(frozen=True)
class HeldOut:
    """The kinds, and the pairs of kinds in one image, that are not in the training set.

    Args:
        kinds: kinds without any training image.
        pairs: pairs of kinds that never occur in one training image.
    """

    kinds: frozenset[Kind]
    pairs: frozenset[frozenset[Kind]]

    def touches(self, request: Request) -> bool:
        """Whether a request contains a held-out kind or pair.

        Args:
            request: the request of a caption.

        Returns:
            True or False.
        """
        kinds = request.kinds
        return any(kind in self.kinds for kind in kinds) or any(
            frozenset(pair) in self.pairs for pair in itertools.combinations(kinds, 2)
        )


@cache
def held_out(seed: int = 2306, share: float = 0.2) -> HeldOut:
    """The fixed split: a share of the kinds, and of the pairs of the remaining kinds.

    Args:
        seed: seed of the split.
        share: the share held out.

    Returns:
        What is held out.
    """
    rng = random.Random(seed)
    # Each color loses at most one shape and each shape at most two colors: both words stay common in training.
    kinds: list[Kind] = []
    for kind in rng.sample(KINDS, len(KINDS)):
        if len(kinds) == round(share * len(KINDS)):
            break
        if all(kind.colour != k.colour for k in kinds) and sum(kind.shape == k.shape for k in kinds) < 2:
            kinds.append(kind)
    seen = [kind for kind in KINDS if kind not in kinds]
    pairs = [frozenset(pair) for pair in itertools.combinations(seen, 2)]
    return HeldOut(frozenset(kinds), frozenset(rng.sample(pairs, round(share * len(pairs)))))


def random_request(rng: random.Random, kinds: tuple[Kind, ...] = KINDS) -> Request:
    """A random request for one to three objects, with repetitions and relations.

    Args:
        rng: source of randomness.
        kinds: kinds to choose from.

    Returns:
        The request.
    """
    total = rng.choices((1, 2, 3), weights=(3, 4, 3))[0]
    split: tuple[int, ...]
    if total == 1:
        split = (1,)
    elif total == 2:
        split = rng.choices(((1, 1), (2,)), weights=(3, 1))[0]
    else:
        split = rng.choices(((1, 1, 1), (2, 1), (3,)), weights=(2, 1, 1))[0]
    counts = tuple(zip(rng.sample(kinds, len(split)), split, strict=True))
    relation = rng.choice(RELATIONS) if split == (1, 1) and rng.random() < 0.5 else None
    return Request(counts, relation)


def training_request(rng: random.Random) -> Request:
    """A random request without held-out kinds and pairs.

    Args:
        rng: source of randomness.

    Returns:
        The request.
    """
    split = held_out()
    while split.touches(request := random_request(rng)):
        pass
    return request


def relation_holds(relation: str, first: Placed, second: Placed, margin: float) -> bool:
    """Whether two objects have a relation.

    Args:
        relation: one of `RELATIONS`, of `first` to `second`.
        first: an object.
        second: another object.
        margin: least distance of the centers in that direction, in pixels.

    Returns:
        True or False.
    """
    offset = {
        "above": second.y - first.y,
        "below": first.y - second.y,
        "to the left of": second.x - first.x,
        "to the right of": first.x - second.x,
    }[relation]
    return offset >= margin


def place(
    request: Request, size: tuple[int, int], rng: random.Random, tries: int = 2000, unit: int | None = None
) -> list[Placed]:
    """Random positions without overlap for the objects of a request.

    Args:
        request: what to place.
        size: (height, width) of the image in pixels.
        rng: source of randomness.
        tries: number of attempts.
        unit: side in pixels of which the size of objects is a share; None is the shorter side of the image. With the
            training size, the objects of a larger image are as large as in training.

    Returns:
        The objects, in the order of the caption.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: `size`, `tries` or `unit` is not allowed, or no free positions were found, for example in a narrow
            image.
    """
    if not isinstance(request, Request):
        raise TypeError(expected("request", "a Request, such as parse_caption('a red circle')", request))
    if not isinstance(rng, random.Random):
        raise TypeError(expected("rng", "a random.Random", rng))
    require_int("tries", tries, 0)
    height, width = checked_size("size", size)
    if unit is not None:
        require_int("unit", unit, 1)
    side = min(size) if unit is None else unit
    wanted = [kind for kind, count in request.counts for _ in range(count)]
    for _ in range(tries):
        placed: list[Placed] = []
        for kind in wanted:
            radius = rng.uniform(*RADIUS) * side
            edge = radius + 0.02 * side
            spot = Placed(kind, rng.uniform(edge, width - edge), rng.uniform(edge, height - edge), radius)
            if all(max(abs(spot.x - o.x), abs(spot.y - o.y)) >= spot.radius + o.radius + GAP * side for o in placed):
                placed.append(spot)
        if len(placed) < len(wanted):
            continue
        if request.relation:
            first, second = placed
            if not relation_holds(request.relation, first, second, margin=sum(RADIUS) * side):
                continue
        return placed
    raise ValueError(f"size: expected free positions for {request.total} objects, got none in {tries} tries at {size}")


def outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The polygon of a shape; for a circle its bounding box.

    Args:
        shape: one of `SHAPES`.
        x: horizontal center.
        y: vertical center.
        radius: half of its width.

    Returns:
        Points (x, y), in the unit of the arguments.
    """
    left, right, top, bottom, third = x - radius, x + radius, y - radius, y + radius, radius / 3
    if shape == "triangle":
        return [(x, top), (right, bottom), (left, bottom)]
    if shape == "cross":
        return [
            (x - third, top), (x + third, top), (x + third, y - third), (right, y - third),
            (right, y + third), (x + third, y + third), (x + third, bottom), (x - third, bottom),
            (x - third, y + third), (left, y + third), (left, y - third), (x - third, y - third),
        ]  # fmt: skip
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: Any) -> None:
    """Draw one filled shape.

    Args:
        draw: canvas of PIL.
        shape: one of `SHAPES`.
        x: horizontal center in pixels.
        y: vertical center in pixels.
        radius: half of its width in pixels.
        fill: color, as PIL takes it.
    """
    points = outline(shape, x, y, radius)
    if shape == "circle":
        draw.ellipse([points[0], points[2]], fill=fill)
    else:
        draw.polygon(points, fill=fill)


def render(placed: list[Placed], size: tuple[int, int]) -> Image.Image:
    """Draw placed objects, anti-aliased.

    Args:
        placed: the objects, from `place`.
        size: (height, width) of the image in pixels.

    Returns:
        An RGB image.

    Raises:
        TypeError: `placed` is no list of `Placed`, or `size` no pair of integers.
        ValueError: `size` is not positive.
    """
    if not isinstance(placed, (list, tuple)) or not all(isinstance(each, Placed) for each in placed):
        raise TypeError(expected("placed", "a list of Placed", placed))
    height, width = checked_size("size", size)
    s = SUPERSAMPLE
    canvas = Image.new("RGB", (width * s, height * s), GROUND)
    draw = ImageDraw.Draw(canvas)
    for obj in placed:
        draw_shape(draw, obj.kind.shape, obj.x * s, obj.y * s, obj.radius * s, COLOURS[obj.kind.colour])
    return canvas.reduce(s)


def scene(rng: random.Random, size: tuple[int, int] = (64, 64)) -> tuple[str, Image.Image]:
    """A random training example without held-out kinds and pairs.

    Args:
        rng: source of randomness.
        size: (height, width) of the image in pixels.

    Returns:
        The caption and the image.
    """
    request = training_request(rng)
    return request.caption(), render(place(request, size, rng), size)


def to_array(image: Image.Image) -> np.ndarray:
    """An image as an array.

    Args:
        image: an image of any mode.

    Returns:
        (H, W, 3) uint8.
    """
    return np.asarray(image.convert("RGB"), dtype=np.uint8)
