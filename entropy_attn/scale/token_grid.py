"""Token counts and the sizes of latents: which grid a UNet's layer sees, and how many tokens it had in training."""

from __future__ import annotations

import math

from entropy_attn.validation import checked_size, require_int


def token_grid(num_tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the tokens of a layer that sees `num_tokens` of a latent of this size (height, width).

    The layers of a UNet see the latent halved a whole number of times, an odd length rounded up each time. The number
    of tokens says how often, to the nearest; tokens that were merged have no such grid.

    Raises:
        TypeError, ValueError: not a whole number from 1, or not a pair of them.
    """
    require_int("num_tokens", num_tokens, 1)
    height, width = checked_size("latent_size", latent_size)
    factor = _downsampling(num_tokens, (height, width))
    return math.ceil(height / factor), math.ceil(width / factor)


def training_tokens(
    num_tokens: int, latent_size: tuple[int, int], train_size: tuple[int, int], *, halvings: int | None = None
) -> int:
    """T of a layer that has `num_tokens` at `latent_size`: its tokens at the latent size used in training.

    latent_size, train_size: (height, width) in latent cells.
    halvings: how often the latent has been halved where the layer sees it, which its name says. It is needed where
        tokens were merged, whose number does not say it: T is that of the layer without merging, as it was trained.
        None goes by the number of tokens, to the nearest.

    Raises:
        TypeError, ValueError: not a whole number from 1 (halvings: from 0), or not a pair of them.
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
    # What odd lengths add when rounded up can be a good part of a very small grid: then a neighbour fits exactly.
    for candidate in (halvings, halvings + 1, halvings - 1):
        if math.ceil(height / 2**candidate) * math.ceil(width / 2**candidate) == num_tokens:
            return 2 ** max(0, candidate)
    return 2**halvings
