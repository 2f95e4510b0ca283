"""Token counts and the sizes of latents: which grid a UNet's layer sees, and how many tokens it had in training."""

from __future__ import annotations

import functools
import math


def token_grid(num_tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the tokens of a layer that sees `num_tokens` of a latent of this size.

    The layers of a UNet see the latent halved a whole number of times, an odd length rounded up each time. The number
    of tokens says how often.
    """
    factor = _downsampling(num_tokens, latent_size)
    return math.ceil(latent_size[0] / factor), math.ceil(latent_size[1] / factor)


@functools.lru_cache(maxsize=4096)
def training_tokens(num_tokens: int, latent_size: tuple[int, int], train_size: tuple[int, int]) -> int:
    """T of a layer that has `num_tokens` at `latent_size`: its tokens at the latent size used in training."""
    factor = _downsampling(num_tokens, latent_size)
    return math.ceil(train_size[0] / factor) * math.ceil(train_size[1] / factor)


def _downsampling(num_tokens: int, latent_size: tuple[int, int]) -> int:
    height, width = latent_size
    # More tokens than latent cells cannot come from halving.
    halvings = max(0, round(0.5 * math.log2(height * width / num_tokens)))
    # What odd lengths add when rounded up can be a good part of a very small grid: then a neighbour fits exactly.
    for candidate in (halvings, halvings + 1, halvings - 1):
        if math.ceil(height / 2**candidate) * math.ceil(width / 2**candidate) == num_tokens:
            return 2 ** max(0, candidate)
    return 2**halvings
