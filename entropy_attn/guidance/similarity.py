"""How alike the cross-attention maps of the words are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.guidance.text import Variant, check_variant
from entropy_attn.ops.autocast import no_autocast
from entropy_attn.validation import checked_positions, expected, require_bool, require_tensor

# The smoothing of Attend-and-Excite and the methods after it: exp(-(d / 2 sigma)^2) at sigma = 0.5, which is a Gaussian
# of standard deviation 0.707.
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
    """S of one image: the normalized cosine similarities of its tokens' maps.

    S_ij = C_ij / sum over k of C_ik, with C_ij the cosine of the smoothed maps of tokens i and j. In "paper" k runs
    over all n tokens, in "released" over k <= i, because T is causal.

    Source: Kim, Esmaeili and Qiu, CVPR 2025, arXiv 2411.15236, Eq. 7.

    Args:
        maps: (h * w, s) floating-point, the cross-attention probabilities A of one image, mean over heads and layers,
            in row-major order.
        size: (h, w).
        tokens: positions in the text of the n real tokens, a sequence or a 1-d integer tensor.
        variant: "released" or "paper".
        smooth: smooth every map with a 3 x 3 kernel before the comparison.

    Returns:
        S (n, n), at least float32, differentiable in `maps`.

    Raises:
        TypeError: `maps` is no floating-point tensor, or `size`, `tokens` or `smooth` has the wrong type.
        ValueError: `maps` is not (h * w, s), a position is not in the text, or `variant` is unknown.
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
        raise TypeError(expected("size", "a pair (h, w)", size))
    if maps.dim() != 2 or size[0] * size[1] != len(maps):
        raise ValueError(f"maps: expected shape (h * w, s) with size (h, w) = {tuple(size)}, got {tuple(maps.shape)}")
    chosen = checked_positions("tokens", tokens, maps.shape[1])
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return wide[:, chosen].mT.unflatten(1, tuple(size))


def smoothed(maps: Tensor) -> Tensor:
    """Each map of (n, h, w) under the 3 x 3 kernel `SMOOTHING` x `SMOOTHING`, mirrored at the borders."""
    if not maps.numel():
        return maps
    weights = torch.tensor(SMOOTHING, dtype=maps.dtype, device=maps.device)
    stacked = maps[:, None]
    for shape, pad in (((1, 1, 3, 1), (0, 0, 1, 1)), ((1, 1, 1, 3), (1, 1, 0, 0))):
        # A single row or column has no neighbor to mirror: repeat it.
        mirrored = stacked.shape[2 if pad[2] else 3] > 1
        stacked = F.conv2d(F.pad(stacked, pad, mode="reflect" if mirrored else "replicate"), weights.view(shape))
    return stacked[:, 0]
