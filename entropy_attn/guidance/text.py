"""The self-attention of the text encoder, which shows the words that belong together."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from entropy_attn.validation import require_bool, require_int, require_number, require_one_of, require_tensor

Variant = Literal["released", "paper"]


def text_self_attention(
    attentions: Tensor,
    input_ids: Tensor,
    eos_token_id: int,
    *,
    gamma: float = 4.0,
    variant: Variant = "released",
    start_mark: bool = True,
) -> list[Tensor]:
    """T of every prompt, from the self-attention of its text encoder.

    The mean over the layers (Eq. 2), restricted to the n real tokens before the first end mark, without the start mark.
    "paper" normalizes the rows to sum 1 (Eq. 3) and then raises them to the power `gamma`, after which they sum to less
    than 1. "released" takes the power first and then normalizes, over the tokens up to the row's own: of a causal
    encoder, CLIP, that cuts nothing off; T5 attends to later tokens too.

    Source: Kim, Esmaeili and Qiu, CVPR 2025, arXiv 2411.15236, Eq. 1-3.

    Args:
        attentions: (L, B, s, s) floating-point, the mean over heads of each layer; row i are the weights of query i.
        input_ids: (B, s) integer token ids.
        eos_token_id: id of the end mark. CLIP also pads with it; the first one counts.
        gamma: the power, at least 0.
        variant: "released" or "paper".
        start_mark: whether position 0 is a start mark, as in CLIP; T5 has none.

    Returns:
        B matrices T (n, n), one per prompt, at least float32, differentiable in `attentions`. n may be 0.

    Raises:
        TypeError: `attentions` is no floating-point tensor, `input_ids` no integer tensor, `start_mark` no bool, or a
            number of another type.
        ValueError: the shapes do not fit, a prompt has no end mark, `gamma` is negative or `variant` unknown.
    """
    check_variant(variant)
    require_number("gamma", gamma, least=0.0)
    require_tensor("attentions", attentions, floating=True)
    require_tensor("input_ids", input_ids, floating=False)
    if attentions.dim() != 4 or attentions.shape[-1] != attentions.shape[-2]:
        raise ValueError(f"attentions: expected shape (layers, prompts, tokens, tokens), got {tuple(attentions.shape)}")
    if tuple(input_ids.shape) != tuple(attentions.shape[1:3]):
        raise ValueError(
            f"input_ids: expected shape {tuple(attentions.shape[1:3])}, as in attentions, got {tuple(input_ids.shape)}"
        )
    tokens = real_tokens(input_ids, eos_token_id, start_mark=start_mark)
    mean = attentions.to(torch.promote_types(attentions.dtype, torch.float32)).mean(0)  # (B, s, s)
    return [
        sharpen(matrix[positions][:, positions], gamma, variant) for matrix, positions in zip(mean, tokens, strict=True)
    ]


def real_tokens(input_ids: Tensor, eos_token_id: int, *, start_mark: bool = True) -> list[list[int]]:
    """The positions 1..e-1 of the real tokens of every prompt, with e the first end mark; 0..e-1 without a start mark.

    Args:
        input_ids: (B, s) integer token ids.
        eos_token_id: id of the end mark.
        start_mark: whether position 0 is a start mark, as in CLIP; T5 has none.

    Returns:
        B lists of positions; an empty prompt has an empty list.

    Raises:
        TypeError: `input_ids` is no integer tensor, `eos_token_id` no integer, or `start_mark` no bool.
        ValueError: `input_ids` is not 2-d, `eos_token_id` is negative, or a prompt has no end mark.
    """
    require_int("eos_token_id", eos_token_id, 0)
    require_bool("start_mark", start_mark)
    require_tensor("input_ids", input_ids, floating=False)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids: expected shape (prompts, tokens), got {tuple(input_ids.shape)}")
    tokens = []
    for ids in input_ids.tolist():  # synchronizes with the device once
        if eos_token_id not in ids:
            raise ValueError(f"eos_token_id: expected an id of the prompt with the ids {ids}, got {eos_token_id}")
        tokens.append(list(range(int(start_mark), ids.index(eos_token_id))))
    return tokens


def sharpen(rows: Tensor, gamma: float, variant: Variant) -> Tensor:
    """Normalize `rows` (n, n) and raise them to the power gamma, in the order of the variant."""
    if variant == "released":  # S is normalized over k <= i, so T is too
        rows = rows.tril()
    largest = rows.amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) if rows.numel() else rows
    rows = rows / largest  # no power underflows a whole row; both normalizations cancel this factor
    if variant == "paper":
        return (rows / rows.sum(-1, keepdim=True)) ** gamma
    powered = rows**gamma
    return powered / powered.sum(-1, keepdim=True)


def check_variant(variant: object) -> None:
    """Refuse an unknown variant."""
    require_one_of("variant", variant, get_args(Variant))
