"""T-SAM: the cross-attention maps are to be as alike as the text encoder's self-attention says the words are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.similarity import attention_similarity
from entropy_attn.guidance.text import Variant, check_variant, sharpen
from entropy_attn.validation import require_number, require_tensor


def tsam_loss(T: Tensor, S: Tensor) -> Tensor:
    """Sum over i of (i / n) * sum over j <= i of |T_ij - S_ij|, i from 1 (arXiv 2411.15236, Eq. 14).

    Args:
        T: (n, n), of `text_self_attention`, powered already.
        S: (n, n), of `attention_similarity`.

    Returns:
        0-d, at least float32, differentiable in both; zero where n is 0. With n = 1 the released form is zero.

    Raises:
        TypeError, ValueError: no matrices, or not square or not of one size.
    """
    require_tensor("T", T)
    require_tensor("S", S)
    if T.dim() != 2 or T.shape[0] != T.shape[1] or T.shape != S.shape:
        raise ValueError(f"T and S must be (n, n) of one n; got {tuple(T.shape)} and {tuple(S.shape)}")
    wide = torch.promote_types(torch.promote_types(T.dtype, S.dtype), torch.float32)
    n = len(T)
    weights = torch.arange(1, n + 1, dtype=wide, device=S.device) / max(n, 1)
    return (weights * (T.to(S.device, wide) - S.to(wide)).abs().tril().sum(-1)).sum()


@dataclass(frozen=True, kw_only=True)
class TSAM(Guidance):
    """Text self-attention maps as guidance: Kim, Esmaeili and Qiu, CVPR 2025, arXiv 2411.15236.

    No parser and no choice of words: which words belong together is read from the text encoder's own attention.

    alpha: 40 for free prompts, 10 for structured ones ("a red bear and a blue bird"), which the paper also refines with
        refine_at=(0, 10, 20).
    gamma: power on T; larger keeps only its strongest entries.
    variant: "released" follows the authors' code along the path of the paper's Eq. 14; "paper" its text: T is
        renormalised before the power, S over all tokens, and alpha is constant. In the text's form many rows have no
        gradient at all, which is why it is not the default.
    step_range: None is (1.0, 0.5) for "released" and (1.0, 1.0) for "paper".
    target: T instead of the text encoder's, for controls: called with the `Prompt`, returns (n, n) or None for the
        usual one.

    Defaults are for 50 denoising steps. The other settings are those of `Guidance`.
    """

    alpha: float = 40.0
    gamma: float = 4.0
    variant: Variant = "released"
    step_range: tuple[float, float] | None = None
    target: Callable[[Prompt], Tensor | None] | None = None

    needs_text_attention = True

    def __post_init__(self) -> None:
        check_variant(self.variant)
        require_number("gamma", self.gamma, least=0.0)
        if self.target is not None and not callable(self.target):
            raise TypeError(f"target={self.target!r}: a callable that is given a Prompt, or None, is needed")
        if self.step_range is None:
            object.__setattr__(self, "step_range", (1.0, 0.5 if self.variant == "released" else 1.0))
        super().__post_init__()

    def applies_to(self, prompt: Prompt) -> bool:
        return len(prompt) > 1  # a single word has nothing to be like

    def text_matrix(self, prompt: Prompt) -> Tensor:
        """T (n, n) of this prompt, as the loss takes it."""
        given = None if self.target is None else self.target(prompt)
        if given is not None:
            return given
        places = list(prompt.tokens)
        return sharpen(prompt.attention[places][:, places], self.gamma, self.variant)

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        similarity = attention_similarity(
            maps.flatten(0, 1), tuple(maps.shape[:2]), prompt.tokens, variant=self.variant
        )
        return tsam_loss(self.text_matrix(prompt), similarity)
