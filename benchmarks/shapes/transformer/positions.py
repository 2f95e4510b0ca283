"""Randomized positions: the rows and columns of a training image, spread over a larger canvas.

In a larger image two things are new to a model that was trained at one size: distances between tokens, and their
number. Only the second is what a softmax scale is for. So a share of the training images gets sorted random rows and
columns of a canvas of up to `extent` tokens a side (Ruoss et al. 2023, arXiv 2305.16843): the distances of the larger
canvas are then known, and the number of tokens stays that of the training size.
"""

from __future__ import annotations

import torch


def draw(batch: int, side: int, share: float, extent: int) -> torch.Tensor:
    """Rows, or columns, of a batch of images.

    Args:
        batch: number of images.
        side: tokens along the axis in the training image.
        share: probability that an image is spread, 0 to 1; the others have 0, 1, …, `side` - 1.
        extent: the largest canvas, in tokens; each spread image has one of `side` to `extent`, uniformly.

    Returns:
        Increasing positions, (batch, side) int64, in [0, extent).
    """
    canvas = torch.randint(side, extent + 1, (batch, 1))
    order = torch.rand(batch, extent).masked_fill(torch.arange(extent) >= canvas, 2.0).argsort(1)
    spread = order[:, :side].sort(1).values
    plain = torch.arange(side).expand(batch, side)
    return torch.where(torch.rand(batch, 1) < share, spread, plain)


def randomize(model, share: float, extent: int):
    """Give a `Lumina2Transformer2DModel` randomized positions, in place; for training alone.

    Raises:
        ValueError: `share` is outside [0, 1], or `extent` is outside the model's rotary tables.
    """
    embedder = model.rope_embedder
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected 0 to 1, got {share}")
    longest = min(len(table) for table in embedder.freqs_cis)
    if not 1 <= extent <= longest:
        raise ValueError(f"extent: expected 1 to {longest}, got {extent}")
    plain = embedder.forward

    def forward(hidden_states: torch.Tensor, attention_mask: torch.Tensor):
        height, width = (n // embedder.patch_size for n in hidden_states.shape[-2:])
        tokens, caption, image, joint, caption_lengths, lengths = plain(hidden_states, attention_mask)
        batch, device = len(tokens), tokens.device
        _, rows, columns = (table.to(device) for table in embedder.freqs_cis)
        rows = rows[draw(batch, height, share, extent).to(device)]  # (B, h, pairs)
        columns = columns[draw(batch, width, share, extent).to(device)]
        first = image.shape[-1] - rows.shape[-1] - columns.shape[-1]  # the caption's axis, which stays
        image = torch.cat(
            [
                image[..., :first],
                rows[:, :, None].expand(-1, -1, width, -1).flatten(1, 2),
                columns[:, None].expand(-1, height, -1, -1).flatten(1, 2),
            ],
            -1,
        )
        for i, (start, end) in enumerate(zip(caption_lengths, lengths, strict=True)):
            joint[i, start:end] = image[i]
        return tokens, caption, image, joint, caption_lengths, lengths

    embedder.forward = forward
    return model
