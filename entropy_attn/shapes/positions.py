"""Positions of image tokens at other sizes than the training size: interpolated, for the embedded transformer.

Without this, a larger image continues the rows and columns beyond those of training, and distances between tokens are
new to the model as well as their number. With it, the image keeps the canvas of training and its tokens are closer to
each other: "position interpolation", Chen et al. 2023, arXiv 2306.15595, equation 3, here for two axes.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed, Lumina2Transformer2DModel

from entropy_attn.validation import expected

__all__ = ["InterpolatedRotary", "interpolate_positions"]


def interpolate_positions(transformer: Lumina2Transformer2DModel) -> None:
    """Interpolate the rows and columns of every later image of a transformer, in place.

    Raises:
        ValueError: `transformer` is not a `Lumina2Transformer2DModel`.
    """
    if not isinstance(transformer, Lumina2Transformer2DModel):
        raise ValueError(expected("transformer", "a Lumina2Transformer2DModel", transformer))
    plain, config = transformer.rope_embedder, transformer.config
    transformer.rope_embedder = InterpolatedRotary(plain, config.sample_size // config.patch_size)


class InterpolatedRotary(Lumina2RotaryPosEmbed):
    """Rotary positions of h x w image tokens at 1 / s of the distance, s = sqrt(h w) / side.

    Token i of an axis stands at (i + 1/2) / s - 1/2, so that the area of the image, in the unit of training, is that of
    the training size; at the training size the positions are 0, 1, … as before.

    Args:
        plain: the embedder of the model.
        side: tokens along a side of an image of the training size.
    """

    def __init__(self, plain: Lumina2RotaryPosEmbed, side: int):
        super().__init__(plain.theta, plain.axes_dim, plain.axes_lens, plain.patch_size)
        self.side = side

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        tokens, caption, image, joint, captions, lengths = super().forward(hidden_states, attention_mask)
        height, width = (n // self.patch_size for n in hidden_states.shape[-2:])
        stretch = math.sqrt(height * width) / self.side
        rows, columns = self._turns(1, height, stretch), self._turns(2, width, stretch)
        grid = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], -1)
        image[..., -grid.shape[-1] :] = grid.flatten(0, 1).to(image)  # the first axis is that of the words
        for i, (start, end) in enumerate(zip(captions, lengths, strict=True)):
            joint[i, start:end] = image[i]
        return tokens, caption, image, joint, captions, lengths

    def _turns(self, axis: int, count: int, stretch: float) -> torch.Tensor:
        """Of the tokens of an axis, (count, pairs) complex128."""
        at = (torch.arange(count, dtype=torch.float64) + 0.5) / stretch - 0.5
        return get_1d_rotary_pos_embed(self.axes_dim[axis], at, theta=self.theta, freqs_dtype=torch.float64)
