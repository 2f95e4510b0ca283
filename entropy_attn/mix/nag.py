"""Normalized attention guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from entropy_attn.mix.base import Mix, OtherText
from entropy_attn.scale import CallInfo
from entropy_attn.validation import expected, require_number


@dataclass(frozen=True)
class NAG(Mix):
    """Normalized attention guidance: the attention to the prompt is led away from that to the negative prompt.

    With Z+ the answer for the text of the prompt and Z- that for the text of the negative prompt, by the same queries,

        Z~ = Z+ + strength (Z+ - Z-)
        Z^ = min(1, tau |Z+|_1 / |Z~|_1) Z~
        Z  = alpha Z^ + (1 - alpha) Z+

    where the norms are of a query, over all heads and channels.

    Source: Chen et al., "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models", NeurIPS
    2025, arXiv 2505.21179; in the code of its authors, nag_scale is 1 + strength. They run it in few-step models
    without classifier-free guidance, with a negative text of its own. Here Z- takes the keys and values of the text
    from the samples of the negative prompt, which the pipeline's batch must have, so classifier-free guidance has to be
    on; a guidance scale barely above 1 leaves this guidance alone. In joint attention the negative text has been
    attended to by the image of its own sample.

    Args:
        strength: of the extrapolation, a number >= 0; 0 changes nothing.
        tau: the largest ratio of the norms of Z^ and Z+, a number > 0.
        alpha: the share of Z^ in the result, from 0 to 1.
        layers: the layers of the mix; those without text among their keys keep their answer.
        steps: the denoising steps of the mix, counted from 0; None is all.
        branch: whose samples are mixed; "cond" alone has a meaning here.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of its range, `steps` is empty, or `branch` is another one.
    """

    strength: float = 4.0
    tau: float = 2.5
    alpha: float = 0.25
    layers: str = field(default="all", kw_only=True)
    branch: Literal["cond", "uncond"] | None = field(default="cond", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("strength", self.strength, least=0.0)
        require_number("tau", self.tau, above=0.0)
        require_number("alpha", self.alpha, least=0.0)
        if self.alpha > 1.0:
            raise ValueError(expected("alpha", "a number from 0 to 1", self.alpha))
        if self.branch != "cond":
            raise ValueError(expected("branch", "'cond'", self.branch))

    def other(self, info: CallInfo) -> OtherText | None:
        """What the second answer of a call is computed from.

        Args:
            info: the attention call.

        Returns:
            The text of the negative prompt; None where the image attends to no text.
        """
        return None if info.kind == "self" or info.text_keys is None else OtherText("uncond")

    def combine(self, out: Tensor, other: Tensor, value: Tensor, info: CallInfo) -> Tensor:
        """The formula above, in float32 at least.

        Args:
            out: Z+, (B, H, Nq, Dv).
            other: Z-, (B, H, Nq, Dv).
            value: not used.
            info: not used.

        Returns:
            Z, (B, H, Nq, Dv).
        """
        wide = torch.promote_types(out.dtype, torch.float32)
        positive, negative = out.to(wide), other.to(wide)
        guided = positive + self.strength * (positive - negative)
        norm, limit = (z.abs().sum(dim=(1, 3), keepdim=True) for z in (guided, positive))
        guided = guided * (self.tau * limit / norm.clamp(min=torch.finfo(wide).tiny)).clamp(max=1.0)
        return torch.lerp(positive, guided, self.alpha)
