"""The exact checker: what stands in a picture of shapes, and whether it is what the caption asked for."""

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

# A part smaller than this share of the smallest object's area (a triangle's, or 1/2 of its box) is dirt, not an object.
DIRT = 0.25
# Overlap with the best template (intersection over union) under which a part is an object of no known shape.
MIN_OVERLAP = 0.6
# Every shape is as wide as high; a part beyond this ratio is none of them, however well it fills its box.
MAX_ASPECT = 1.5
UNKNOWN = "blob"


@dataclass(frozen=True)
class Found:
    """An object in a picture: colour, shape (or ``"blob"``), centre and half-width in pixels, area in pixels."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    area: int

    @property
    def kind(self) -> Kind:
        return Kind(self.colour, self.shape)


@dataclass(frozen=True)
class Score:
    """How a picture answers a request. ``relation`` is None where the caption states none.

    presence: every object asked for is there, in at least the number asked for.
    count: the picture holds exactly as many objects as asked for, whatever they are.
    binding: no object wears a colour or shape of the caption in a combination that the caption does not name.
    relation: the two objects stand as the caption says.
    """

    presence: bool
    count: bool
    binding: bool
    relation: bool | None
    found: tuple[Found, ...]

    @property
    def exact(self) -> bool:
        """Everything asked for, and nothing else."""
        return self.presence and self.count


def find_objects(image: Image.Image | np.ndarray) -> list[Found]:
    """Segment a picture by colour and connectedness, and name each part's colour and shape.

    Args:
        image: RGB, ``(H, W, 3)`` uint8 if an array.
    """
    pixels = to_array(image) if isinstance(image, Image.Image) else np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(f"image: got shape {pixels.shape}, dtype {pixels.dtype}; allowed is (H, W, 3) uint8")
    names = list(COLOURS)
    # An edge pixel is a mixture of ground and colour: its direction from the ground tells the colour, its length how
    # much of it. Taking the nearest palette entry instead would read the rim of a blue shape as purple.
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
    best = max(overlaps, key=overlaps.get)
    return best if overlaps[best] >= MIN_OVERLAP else UNKNOWN


@cache
def _template(shape: str, size: tuple[int, int]) -> np.ndarray:
    """The shape drawn so that it fills a bounding box of ``size = (height, width)``."""
    fine = 256
    canvas = Image.new("L", (fine, fine), 0)
    draw_shape(ImageDraw.Draw(canvas), shape, (fine - 1) / 2, (fine - 1) / 2, (fine - 1) / 2, 255)
    return np.asarray(canvas.resize((size[1], size[0]), Image.Resampling.BOX)) >= 128


def check(image: Image.Image | np.ndarray, request: Request) -> Score:
    """Mark a picture against what its caption asks for.

    Raises:
        TypeError, ValueError: no picture as `find_objects` takes it, or no `Request`.
    """
    if not isinstance(request, Request):
        raise TypeError(f"request={request!r}: a Request is needed, such as parse_caption('a red circle')")
    found = find_objects(image)
    have = Counter(f.kind for f in found)
    asked = dict(request.counts)
    presence = all(have[kind] >= count for kind, count in asked.items())
    colours = {kind.colour for kind in asked}
    shapes = {kind.shape for kind in asked}
    binding = all(f.kind in asked for f in found if f.colour in colours or f.shape in shapes)
    relation = None
    if request.relation is not None:
        first, second = (
            [Placed(f.kind, f.x, f.y, f.radius) for f in found if f.kind == kind] for kind in request.kinds
        )
        relation = any(relation_holds(request.relation, a, b, margin=1.0) for a in first for b in second)
    return Score(presence, len(found) == request.total, binding, relation, tuple(found))
