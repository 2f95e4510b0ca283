"""The oracle map of `shapes`: a guidance that knows where every object of a caption may be."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.prompts import Text
from entropy_attn.shapes.scenes import Kind, parse_caption, place
from entropy_attn.shapes.words import objects
from entropy_attn.validation import expected

CELL = 16  # pixels of a token of the maps in the scene that places the objects; any number does


@dataclass(frozen=True, kw_only=True)
class OracleMap(Guidance):
    """The attention to each object's color and shape lies where a scene that fits the caption has this object.

    L = mean over the words of (1 - share of the word's map inside the boxes of its objects). The scene is a random one
    that fits the caption, the same for all images of the caption. This is an upper bound for guidance by maps: no other
    method knows a layout. Where it repairs no more than another seed, maps are not what the model lacks. The loss is
    that of layout guidance without its square (Chen et al., arXiv 2304.03373).

    Args:
        alpha: see `Guidance`.
        steps: see `Guidance`.
        step_range: see `Guidance`.
        refine_at: see `Guidance`.
        refine_iters: see `Guidance`.
        map_size: see `Guidance`.
        layers: see `Guidance`.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is not allowed.
    """

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image.

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt, a caption of `shapes`.

        Returns:
            The loss, 0-d.

        Raises:
            ValueError: the prompt is no caption of `shapes`, or several texts of different encoders.
        """
        text = prompt.text
        if not isinstance(text, Text):
            raise ValueError(expected("prompt.text", "the text of one encoder", text))
        regions = layout(text.prompt, (maps.shape[0], maps.shape[1]))
        outside = []
        for (_, color, shape), region in zip(objects(text), regions.values(), strict=True):
            inside = region.to(maps.device, maps.dtype)
            for position in (*color, *shape):
                word = maps[..., position]
                outside.append(1.0 - (word * inside).sum() / word.sum().clamp_min(torch.finfo(word.dtype).tiny))
        return torch.stack(outside).mean()


def layout(caption: str, size: tuple[int, int]) -> dict[Kind, Tensor]:
    """Where the objects of a caption may be.

    Args:
        caption: a caption of `shapes`.
        size: (rows, columns) of the maps in tokens.

    Returns:
        {kind: (rows, columns) bool, the tokens whose centers lie in the box of an object of this kind}, in the order of
        the caption.

    Raises:
        ValueError: it is no caption of `shapes`.
    """
    request = parse_caption(caption)
    rows, columns = size
    placed = place(request, (rows * CELL, columns * CELL), random.Random(caption))
    y = (torch.arange(rows) + 0.5)[:, None] * CELL
    x = (torch.arange(columns) + 0.5)[None] * CELL
    regions = {kind: torch.zeros(size, dtype=torch.bool) for kind in request.kinds}
    for each in placed:
        regions[each.kind] |= ((y - each.y).abs() <= each.radius) & ((x - each.x).abs() <= each.radius)
    return regions
