"""T-SAM: cross-attention maps become as similar as the text encoder's self-attention says their words are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.similarity import attention_similarity
from entropy_attn.guidance.text import Variant, check_variant, sharpen
from entropy_attn.validation import expected, require_callable, require_number, require_tensor


def tsam_loss(T: Tensor, S: Tensor) -> Tensor:
    """The T-SAM loss: sum over i of (i / n) * sum over j <= i of |T_ij - S_ij|, i from 1.

    Source: Kim, Esmaeili and Qiu, CVPR 2025, arXiv 2411.15236, Eq. 14.

    Args:
        T: (n, n), from `text_self_attention`.
        S: (n, n), from `attention_similarity`.

    Returns:
        The loss, 0-d, at least float32, differentiable in both; 0 for n = 0, and for n = 1 in the released variant.

    Raises:
        TypeError: `T` or `S` is no tensor.
        ValueError: they are not square, or not of the same size.
    """
    require_tensor("T", T)
    require_tensor("S", S)
    if T.dim() != 2 or T.shape[0] != T.shape[1] or T.shape != S.shape:
        raise ValueError(f"T, S: expected two shapes (n, n) with the same n, got {tuple(T.shape)} and {tuple(S.shape)}")
    wide = torch.promote_types(torch.promote_types(T.dtype, S.dtype), torch.float32)
    n = len(T)
    weights = torch.arange(1, n + 1, dtype=wide, device=S.device) / max(n, 1)
    return (weights * (T.to(S.device, wide) - S.to(wide)).abs().tril().sum(-1)).sum()


@dataclass(frozen=True, kw_only=True)
class TSAM(Guidance):
    """T-SAM: guidance by text self-attention maps. It needs no parser and no choice of words.

    L is `tsam_loss` of T, the text encoder's self-attention, and S, the similarity of the cross-attention maps: the
    maps of two words become as similar as the text encoder relates the words. Defaults are for 50 denoising steps.

    An encoder that is not causal, T5, relates a word to later ones too. In "released" its T is cut to the earlier ones
    before the power, because S is normalized over these. An image that attends to the texts of several encoders, as in
    Stable Diffusion 3, has a T and an S for each, and L is the mean.

    Source: Kim, Esmaeili and Qiu, "Text Embedding is Not All You Need: Attention Control for Text-to-Image Semantic
    Alignment with Text Self-Attention Maps", CVPR 2025, arXiv 2411.15236, Eq. 14 and 15.

    Args:
        alpha: step length: 40 for free prompts, 10 for structured ones ("a red bear and a blue bird"), for which the
            paper also sets refine_at=(0, 10, 20). These are for the 16,384 latents of Stable Diffusion at 512 px; as
            the loss is made of cosines, alpha should be proportional to the number of latents.
        gamma: power on T; a larger one keeps only the strongest entries.
        variant: "released" follows the authors' code; "paper" follows the text of the paper: T is normalized before the
            power, S over all tokens, and alpha is constant. As in the text many rows have no gradient at all, so it is
            not the default.
        target: replaces T, for controls: called with the `Prompt`, returns (n, n), or None for the text encoder's T.
        step_range: see `Guidance`; None is (1.0, 0.5) for "released" and (1.0, 1.0) for "paper".
        steps: see `Guidance`.
        refine_at: see `Guidance`.
        refine_iters: see `Guidance`.
        map_size: see `Guidance`.
        layers: see `Guidance`.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is not allowed.
    """

    alpha: float = 40.0
    gamma: float = 4.0
    variant: Variant = "released"
    step_range: tuple[float, float] | None = None  # type: ignore[assignment]  # a pair since __post_init__
    target: Callable[[Prompt], Tensor | None] | None = None

    needs_text_attention = True

    def __post_init__(self) -> None:
        check_variant(self.variant)
        require_number("gamma", self.gamma, least=0.0)
        if self.target is not None:
            require_callable("target", self.target, "None or a callable (prompt) -> T")
        if self.step_range is None:
            object.__setattr__(self, "step_range", (1.0, 0.5 if self.variant == "released" else 1.0))
        super().__post_init__()

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether a text of the prompt has at least two tokens to compare.

        Args:
            prompt: the prompt of one image.

        Returns:
            True or False.
        """
        return any(len(tokens) > 1 for tokens in prompt.tokens_of_parts)

    def text_matrix(self, prompt: Prompt) -> Tensor:
        """T of a prompt.

        Args:
            prompt: the prompt of one image, with its `attention`.

        Returns:
            T (n, n), from `target` or the text encoder.

        Raises:
            ValueError: the prompt has no `attention`, and `target` returned None.
        """
        given = None if self.target is None else self.target(prompt)
        if given is not None:
            return given
        if prompt.attention is None:
            raise ValueError(expected("prompt.attention", "the text encoder's self-attention (s, s)", None))
        positions = list(prompt.tokens)
        return sharpen(prompt.attention[positions][:, positions], self.gamma, self.variant)

    def image_matrix(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """S of a prompt.

        Args:
            maps: (h, w, s) float32, the attention probabilities of one image.
            prompt: its prompt.

        Returns:
            S (n, n), differentiable in `maps`; 0 between the tokens of two texts.
        """
        flat, size = maps.flatten(0, 1), (maps.shape[0], maps.shape[1])
        parts = prompt.tokens_of_parts
        each = [attention_similarity(flat, size, tokens, variant=self.variant) for tokens in parts]
        return each[0] if len(each) == 1 else torch.block_diag(*(part for part in each if part.numel()))

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image (arXiv 2411.15236, Eq. 14); the mean over its texts that have two tokens, if several.

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d.
        """
        matrix, similarity = self.text_matrix(prompt), self.image_matrix(maps, prompt)
        parts = prompt.tokens_of_parts
        if len(parts) == 1:
            return tsam_loss(matrix, similarity)
        losses, start = [], 0
        for tokens in parts:
            part = slice(start, start + len(tokens))
            start = part.stop
            if len(tokens) > 1:
                losses.append(tsam_loss(matrix[part, part], similarity[part, part]))
        return torch.stack(losses).mean()
