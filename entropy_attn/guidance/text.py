"""What the text encoder's own attention says about the prompt: which words belong together."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from entropy_attn.validation import require_int, require_number, require_tensor

Variant = Literal["released", "paper"]


def text_self_attention(
    attentions: Tensor,
    input_ids: Tensor,
    eos_token_id: int,
    *,
    gamma: float = 4.0,
    variant: Variant = "released",
) -> list[Tensor]:
    """T of every prompt, from the self-attention of its text encoder (arXiv 2411.15236, Eq. 1-3).

    The mean over the layers (Eq. 2), restricted to the n real tokens: those between the start mark and the first end
    mark. "paper" then makes the rows sum to one (Eq. 3) and takes the power `gamma`, so that rows sum to less than one;
    "released" takes the power first.

    Args:
        attentions: (L, B, s, s), the mean over heads of each layer; row i is what token i attends to. Any float dtype.
        input_ids: (B, s) token ids, with the start mark at position 0.
        eos_token_id: the id of the end mark. CLIP pads with it too; the first one counts.
        gamma: the power, at least 0.
        variant: "released" or "paper".

    Returns:
        B matrices (n, n), at least float32, one a prompt, differentiable in `attentions`. n may be 0.

    Raises:
        TypeError, ValueError: shapes that do not fit, a prompt without an end mark, an unknown variant.
    """
    check_variant(variant)
    require_number("gamma", gamma, least=0.0)
    require_tensor("attentions", attentions, floating=True)
    require_tensor("input_ids", input_ids, floating=False)
    if attentions.dim() != 4 or attentions.shape[-1] != attentions.shape[-2]:
        raise ValueError(
            f"attentions must be (layers, prompts, tokens, tokens), all of one length; got {tuple(attentions.shape)}"
        )
    if tuple(input_ids.shape) != tuple(attentions.shape[1:3]):
        raise ValueError(
            f"input_ids must be {tuple(attentions.shape[1:3])}, as attentions are; got {tuple(input_ids.shape)}"
        )
    tokens = real_tokens(input_ids, eos_token_id)
    mean = attentions.to(torch.promote_types(attentions.dtype, torch.float32)).mean(0)  # (B, s, s)
    return [
        sharpen(of_prompt[places][:, places], gamma, variant) for of_prompt, places in zip(mean, tokens, strict=True)
    ]


def real_tokens(input_ids: Tensor, eos_token_id: int) -> list[list[int]]:
    """Positions 1..e-1 of every prompt of `input_ids` (B, s), e being the first end mark; empty for an empty prompt.

    Raises:
        TypeError, ValueError: no tensor (B, s) of whole numbers, or a prompt without an end mark.
    """
    require_int("eos_token_id", eos_token_id, 0)
    require_tensor("input_ids", input_ids, floating=False)
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be (prompts, tokens); got {tuple(input_ids.shape)}")
    tokens = []
    for ids in input_ids.tolist():  # one wait for the device
        if eos_token_id not in ids:
            raise ValueError(f"eos_token_id={eos_token_id}: the prompt with the ids {ids} has no such end mark")
        tokens.append(list(range(1, ids.index(eos_token_id))))
    return tokens


def sharpen(rows: Tensor, gamma: float, variant: Variant) -> Tensor:
    """Renormalised and powered, in the order of the variant; `rows` (n, n) are probabilities of the real tokens."""
    largest = rows.amax(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny) if rows.numel() else rows
    rows = rows / largest  # so that no power makes a whole row zero; either normalisation takes this factor out
    if variant == "paper":
        return (rows / rows.sum(-1, keepdim=True)) ** gamma
    powered = rows**gamma
    return powered / powered.sum(-1, keepdim=True)


def check_variant(variant: object) -> None:
    if variant not in get_args(Variant):
        raise ValueError(f"variant={variant!r}: 'released' or 'paper' is needed")
