"""One side of a map of attention, its rows or its keys: the image, words of the prompt, or regions of the image."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch

from entropy_attn.prompts import TokenSelection
from entropy_attn.scale import token_grid
from entropy_attn.scale.regions import Region, checked_region, on_grid
from entropy_attn.validation import Size, expected, require_number

Point = tuple[float, float]  # x, y, as fractions of the width and the height


class Side:
    """What a user gave as `rows` or `keys`.

    Attributes:
        name: "rows" or "keys".
        kind: "image" for each of its tokens, "text" for words and positions, "regions" for points, boxes and masks.
        selection: the words and positions, if the kind is "text".
        regions: the points, boxes and masks, if the kind is "regions".

    Raises:
        TypeError: `given` is nothing of that.
        ValueError: `given` is empty, or one of its elements has no meaning.
    """

    def __init__(self, name: Literal["rows", "keys"], given: Any):
        self.name, self.given = name, given
        self.kind: Literal["image", "text", "regions"] = "text"
        self.selection: TokenSelection | None = None
        self.regions: tuple[Point | Region, ...] = ()
        what = (
            "'image', 'text', words or positions of the text, or a list of points (x, y), boxes (left, top, right, "
            "bottom) and masks of the image"
        )
        if isinstance(given, str) and given == "image":
            self.kind = "image"
        elif isinstance(given, str) and given == "text":
            self.selection = TokenSelection()
        elif isinstance(given, (tuple, list)) and any(isinstance(each, (tuple, list, torch.Tensor)) for each in given):
            if not all(isinstance(each, (tuple, list, torch.Tensor)) for each in given):
                raise TypeError(expected(name, what, given))
            self.kind, self.regions = "regions", tuple(_checked(name, each) for each in given)
        elif isinstance(given, (str, int, tuple, list, range)):
            with self.naming():
                self.selection = TokenSelection(given)
        else:
            raise TypeError(expected(name, what, given))

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Errors about `tokens` name this argument instead."""
        try:
            yield
        except (TypeError, ValueError) as error:
            text = re.sub(r"^tokens(?=[:=])", self.name, str(error))
            text = text.replace("give special=True, or positions as tokens", f"give positions as {self.name}")
            raise type(error)(text) from error

    @property
    def labels(self) -> tuple[str, ...]:
        """Of regions, in order; masks are numbered."""
        masks = [id(each) for each in self.regions if isinstance(each, torch.Tensor)]
        return tuple(
            f"mask {masks.index(id(each))}"
            if isinstance(each, torch.Tensor)
            else f"({', '.join(f'{at:.3g}' for at in each)})"
            for each in self.regions
        )

    def weights(self, grid: Size) -> torch.Tensor:
        """(regions, tokens) with 1 / n for each of the n tokens of a region.

        Raises:
            ValueError: a mask has no token of the grid.
        """
        return torch.stack([self._weights_of(region, grid) for region in self.regions])

    def _weights_of(self, region: Point | Region, grid: Size) -> torch.Tensor:
        rows, columns = grid
        if not isinstance(region, torch.Tensor) and len(region) == 2:
            inside = torch.zeros(grid, dtype=torch.bool)
            x, y = region
            inside[min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)] = True
        else:
            inside = on_grid(region, grid)
        if not inside.any():
            raise ValueError(
                f"{self.name}: a mask of shape {tuple(region.shape) if isinstance(region, torch.Tensor) else region} "
                f"has no token of a layer of {rows}x{columns}: give a larger one, or other layers"
            )
        return (inside / inside.sum()).flatten()


@functools.lru_cache(maxsize=1024)
def image_grid(tokens: int, latent_size: Size) -> Size | None:
    """(rows, columns) of an image of this many tokens; None if they are no image of these latents."""
    if tokens < 1:
        return None
    size = token_grid(tokens, latent_size)
    return size if math.prod(size) == tokens else None


def _checked(name: str, region: Any) -> Point | Region:
    if isinstance(region, torch.Tensor) or len(region) != 2:
        return checked_region(name, region)
    for at in region:
        require_number(name, at)
    x, y = region
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ValueError(expected(name, "points (x, y) in fractions from 0 to 1", region))
    return float(x), float(y)
