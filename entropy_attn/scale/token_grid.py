"""The token grid of a UNet's layer, and its token count at the training size."""

from __future__ import annotations

import math

from entropy_attn.validation import checked_size, require_int


def token_grid(num_tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """The grid of the tokens of a UNet's layer.

    A UNet's layer sees the latent halved k times, each odd length rounded up. k is the integer that fits `num_tokens`
    best. Merged tokens have no such grid.

    Args:
        num_tokens: number of image tokens N of the layer.
        latent_size: (height, width) of the latent, in cells.

    Returns:
        (rows, columns) of the grid.

    Raises:
        TypeError: `num_tokens` is no integer, or `latent_size` no pair of integers.
        ValueError: one of them is less than 1.
    """
    require_int("num_tokens", num_tokens, 1)
    height, width = checked_size("latent_size", latent_size)
    factor = _downsampling(num_tokens, (height, width))
    return math.ceil(height / factor), math.ceil(width / factor)


def training_tokens(
    num_tokens: int, latent_size: tuple[int, int], train_size: tuple[int, int], *, halvings: int | None = None
) -> int:
    """The token count T of a UNet's layer at the training size: ceil(h / 2**k) * ceil(w / 2**k).

    Args:
        num_tokens: number of image tokens N of the layer at `latent_size`.
        latent_size: (height, width) of the latent, in cells.
        train_size: (h, w) of the latent in training, in cells.
        halvings: k, how many times the latent was halved before this layer, as its name says. Give it where tokens are
            merged: T is then the count without merging, as in training. None takes the k that fits `num_tokens` best.

    Returns:
        T.

    Raises:
        TypeError: a count is no integer, or a size no pair of integers.
        ValueError: a count or a length is less than 1, or `halvings` less than 0.
    """
    require_int("num_tokens", num_tokens, 1)
    if halvings is not None:
        require_int("halvings", halvings, 0, "None or ")
    latent, train = checked_size("latent_size", latent_size), checked_size("train_size", train_size)
    factor = _downsampling(num_tokens, latent) if halvings is None else 2**halvings
    return math.ceil(train[0] / factor) * math.ceil(train[1] / factor)


def _downsampling(num_tokens: int, latent_size: tuple[int, int]) -> int:
    height, width = latent_size
    # More tokens than latent cells cannot come from halving.
    halvings = max(0, round(0.5 * math.log2(height * width / num_tokens)))
    # Rounding up adds much to a very small grid: then a neighboring k fits exactly.
    for candidate in (halvings, halvings + 1, halvings - 1):
        if math.ceil(height / 2**candidate) * math.ceil(width / 2**candidate) == num_tokens:
            return 2 ** max(0, candidate)
    return 2**halvings
