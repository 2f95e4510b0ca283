"""Where the objects of a caption are in the encoded text."""

from __future__ import annotations

from entropy_attn.prompts import Text
from entropy_attn.shapes.scenes import COLOURS

Positions = tuple[int, ...]


def objects(text: Text) -> list[tuple[Positions, Positions, Positions]]:
    """The words of each object of a caption of `entropy_attn.shapes.scenes`.

    Args:
        text: the caption, encoded.

    Returns:
        The positions of (number, color, shape) of each object, in the order of the caption.
    """
    words = text.words
    return [
        (words[at - 1].positions, words[at].positions, words[at + 1].positions)
        for at in range(1, len(words) - 1)
        if words[at].label in COLOURS
    ]
