"""How alike the cross-attention maps of the words are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.guidance.text import Variant, check_variant
from entropy_attn.ops.autocast import no_autocast
from entropy_attn.validation import checked_positions, require_bool, require_tensor

# The smoothing that Attend-and-Excite brought in and its followers inherited: exp(-(d / 2 sigma)^2) at sigma = 0.5,
# which is a Gaussian of 0.707.
_SIDE = math.exp(-1.0) / (1.0 + 2.0 * math.exp(-1.0))
SMOOTHING = (_SIDE, 1.0 - 2.0 * _SIDE, _SIDE)  # (0.212, 0.576, 0.212)


def attention_similarity(
    maps: Tensor,
    size: tuple[int, int],
    tokens: Sequence[int] | Tensor,
    *,
    variant: Variant = "released",
    smooth: bool = True,
) -> Tensor:
    """S of one picture: the cosine similarities of its words' maps, as rows of weights (arXiv 2411.15236, Eq. 7).

    C is the cosine of the smoothed maps of two tokens. "paper" divides each row of C by its sum over all n tokens,
    "released" by its sum over the tokens up to the row's own, as T is causal.

    Args:
        maps: (h * w, s), the cross-attention probabilities A of one picture, mean over heads and layers; rows first.
        size: (h, w).
        tokens: positions in the text of the n real tokens.
        variant: "released" or "paper".
        smooth: smooth every map once, 3 x 3, before they are compared.

    Returns:
        (n, n), at least float32 whatever the dtype of `maps`, differentiable in them.

    Raises:
        TypeError, ValueError: maps that are no floating-point tensor, a size that is not theirs, a token that is not in
            the text, an unknown variant.
    """
    check_variant(variant)
    require_bool("smooth", smooth)
    require_tensor("maps", maps, floating=True)
    with no_autocast(maps.device.type):
        chosen = token_maps(maps, size, tokens)
        if smooth:
            chosen = smoothed(chosen)
        flat = F.normalize(chosen.flatten(1), dim=1, eps=torch.finfo(chosen.dtype).tiny ** 0.5)
        cosines = flat @ flat.mT
    weighed = cosines if variant == "paper" else cosines.tril()
    return cosines / weighed.sum(-1, keepdim=True).clamp_min(torch.finfo(cosines.dtype).tiny)


def token_maps(maps: Tensor, size: tuple[int, int], tokens: Sequence[int] | Tensor) -> Tensor:
    """The maps (n, h, w) of these positions, at least float32, from `maps` (h * w, s)."""
    if not isinstance(size, (tuple, list, torch.Size)) or len(size) != 2:
        raise TypeError(f"size={size!r}: a pair (h, w) is needed")
    if maps.dim() != 2 or size[0] * size[1] != len(maps):
        raise ValueError(f"maps of shape {tuple(maps.shape)} are not (h * w, s) for the size {tuple(size)}")
    places = checked_positions("tokens", tokens, maps.shape[1])
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return wide[:, places].mT.unflatten(1, tuple(size))


def smoothed(maps: Tensor) -> Tensor:
    """Each map of (n, h, w) under the 3 x 3 kernel `SMOOTHING` x `SMOOTHING`, mirrored at the borders."""
    if not maps.numel():
        return maps
    weights = torch.tensor(SMOOTHING, dtype=maps.dtype, device=maps.device)
    stacked = maps[:, None]
    for shape, pad in (((1, 1, 3, 1), (0, 0, 1, 1)), ((1, 1, 1, 3), (1, 1, 0, 0))):
        # A single row or column has no neighbour to mirror: it is its own.
        mirrored = stacked.shape[2 if pad[2] else 3] > 1
        stacked = F.conv2d(F.pad(stacked, pad, mode="reflect" if mirrored else "replicate"), weights.view(shape))
    return stacked[:, 0]
