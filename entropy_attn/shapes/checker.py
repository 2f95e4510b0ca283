"""The exact checker: the objects in an image of shapes, and whether they are what the caption requests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from entropy_attn.shapes.scenes import (
    COLOURS,
    GROUND,
    RADIUS,
    SHAPES,
    Kind,
    Placed,
    Request,
    draw_shape,
    relation_holds,
    to_array,
)
from entropy_attn.validation import expected

# A part smaller than this share of the smallest object's area (a triangle: 1/2 of its box) is noise, not an object.
DIRT = 0.25
# Minimum overlap (intersection over union) with the best template; below it the shape is unknown.
MIN_OVERLAP = 0.6
# Every shape is as wide as high; a part beyond this aspect ratio is none of them.
MAX_ASPECT = 1.5
UNKNOWN = "blob"


@dataclass(frozen=True)
class Found:
    """An object in an image.

    Args:
        colour: its color, a key of `COLOURS`.
        shape: its shape, one of `SHAPES` or "blob".
        x: horizontal center in pixels.
        y: vertical center in pixels.
        radius: half of its width in pixels.
        area: area in pixels.
    """

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    area: int

    @property
    def kind(self) -> Kind:
        """Color and shape."""
        return Kind(self.colour, self.shape)


@dataclass(frozen=True)
class Score:
    """How well an image satisfies a request.

    Args:
        presence: every requested object is present, at least as often as requested.
        count: the image has exactly the requested number of objects, of any kind.
        binding: no object combines a color or shape of the caption in a way that the caption does not name.
        relation: the two objects have the requested relation; None if the caption has none.
        found: the objects.
    """

    presence: bool
    count: bool
    binding: bool
    relation: bool | None
    found: tuple[Found, ...]

    @property
    def exact(self) -> bool:
        """All requested objects and no others."""
        return self.presence and self.count


def find_objects(image: Image.Image | np.ndarray) -> list[Found]:
    """Segment an image into connected parts of one color, and name the color and shape of each.

    Args:
        image: an RGB image, or an array (H, W, 3) uint8.

    Returns:
        The objects, from top to bottom.

    Raises:
        ValueError: the array has another shape or dtype.
    """
    pixels = to_array(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image: expected shape (H, W, 3) of uint8, got shape {pixels.shape} of {pixels.dtype}")
    names = list(COLOURS)
    # An edge pixel mixes background and color: its direction from the background is the color, its length the amount.
    # The nearest palette entry would be wrong: it takes the edge of a blue shape for purple.
    ground = np.array(GROUND, dtype=np.float32)
    palette = np.array([COLOURS[name] for name in names], dtype=np.float32) - ground
    lengths = np.linalg.norm(palette, axis=-1)
    along = (pixels.astype(np.float32) - ground) @ (palette / lengths[:, None]).T  # [H, W, colours]
    nearest = along.argmax(-1)
    foreground = along.max(-1) > 0.5 * lengths[nearest]
    smallest = DIRT * 0.5 * (2 * RADIUS[0] * min(pixels.shape[:2])) ** 2
    found = []
    for index, name in enumerate(names):
        labels, _ = ndimage.label(foreground & (nearest == index))
        for label, box in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[box] == label
            area = int(mask.sum())
            if area < smallest:
                continue
            rows, cols = box
            found.append(
                Found(
                    colour=name,
                    shape=_shape_of(mask),
                    x=(cols.start + cols.stop) / 2,
                    y=(rows.start + rows.stop) / 2,
                    radius=max(mask.shape) / 2,
                    area=area,
                )
            )
    return sorted(found, key=lambda f: (f.y, f.x))


def _shape_of(mask: np.ndarray) -> str:
    if max(mask.shape) > MAX_ASPECT * min(mask.shape):
        return UNKNOWN
    overlaps = {}
    for shape in SHAPES:
        template = _template(shape, mask.shape)
        overlaps[shape] = np.logical_and(mask, template).sum() / np.logical_or(mask, template).sum()
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] >= MIN_OVERLAP else UNKNOWN


@cache
def _template(shape: str, size: tuple[int, int]) -> np.ndarray:
    """The shape drawn to fill a bounding box of `size` = (height, width)."""
    fine = 256
    canvas = Image.new("L", (fine, fine), 0)
    draw_shape(ImageDraw.Draw(canvas), shape, (fine - 1) / 2, (fine - 1) / 2, (fine - 1) / 2, 255)
    return np.asarray(canvas.resize((size[1], size[0]), Image.Resampling.BOX)) >= 128


def check(image: Image.Image | np.ndarray, request: Request) -> Score:
    """Score an image against a request.

    Args:
        image: an RGB image, or an array (H, W, 3) uint8.
        request: the request of its caption, from `parse_caption`.

    Returns:
        The score, with the objects found.

    Raises:
        TypeError: `request` is no `Request`.
        ValueError: the array has another shape or dtype.
    """
    if not isinstance(request, Request):
        raise TypeError(expected("request", "a Request, such as parse_caption('a red circle')", request))
    found = find_objects(image)
    have = Counter(f.kind for f in found)
    requested = dict(request.counts)
    presence = all(have[kind] >= count for kind, count in requested.items())
    colours = {kind.colour for kind in requested}
    shapes = {kind.shape for kind in requested}
    binding = all(f.kind in requested for f in found if f.colour in colours or f.shape in shapes)
    relation = None
    if request.relation is not None:
        first, second = (
            [Placed(f.kind, f.x, f.y, f.radius) for f in found if f.kind == kind] for kind in request.kinds
        )
        relation = any(relation_holds(request.relation, a, b, margin=1.0) for a in first for b in second)
    return Score(presence, len(found) == request.total, binding, relation, tuple(found))
