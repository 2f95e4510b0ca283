"""Normalized attention guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from entropy_attn.mix.base import Mix, OtherText, OwnText
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
    2025, arXiv 2505.21179; in the code of its authors, nag_scale is 1 + strength, and the norms of Flux are L2. They
    run it in few-step models without classifier-free guidance, with a negative text of its own: `text` is that. Without
    it, Z- takes the keys and values of the text from the samples of the negative prompt, which the pipeline's batch
    must have, so classifier-free guidance has to be on; a guidance scale barely above 1 leaves this guidance alone. In
    joint attention that negative text has been attended to by the image of its own sample, whereas `text` is carried
    beside the image of the prompt.

    Args:
        strength: of the extrapolation, a number >= 0; 0 changes nothing.
        tau: the largest ratio of the norms of Z^ and Z+, a number > 0.
        alpha: the share of Z^ in the result, from 0 to 1.
        text: the negative text, an `OwnText`, or its `embeds` alone. None takes that of the batch.
        layers: the layers of the mix; those without text among their keys keep their answer.
        steps: the denoising steps of the mix, counted from 0; None is all.
        branch: whose samples are mixed. "cond" alone has a meaning without `text`; with it None is all samples, which
            needs no pipeline.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of its range, `steps` is empty, `branch` is another one, or `text` has a wrong
            shape.
    """

    strength: float = 4.0
    tau: float = 2.5
    alpha: float = 0.25
    text: OwnText | Tensor | None = None
    layers: str = field(default="all", kw_only=True)
    branch: Literal["cond", "uncond"] | None = field(default="cond", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("strength", self.strength, least=0.0)
        require_number("tau", self.tau, above=0.0)
        require_number("alpha", self.alpha, least=0.0)
        if self.alpha > 1.0:
            raise ValueError(expected("alpha", "a number from 0 to 1", self.alpha))
        if isinstance(self.text, Tensor):
            try:
                object.__setattr__(self, "text", OwnText(self.text))
            except (TypeError, ValueError) as error:
                raise type(error)(f"text: {error}") from None
        elif self.text is not None and not isinstance(self.text, OwnText):
            raise TypeError(expected("text", "an ea.mix.OwnText, a tensor of embeddings or None", self.text))
        if self.text is None and self.branch != "cond":
            raise ValueError(expected("branch", "'cond', or another one with text=...", self.branch))

    @property
    def own_text(self) -> OwnText | None:
        """`text`, as an `OwnText`."""
        return cast(OwnText | None, self.text)

    def other(self, info: CallInfo) -> OtherText | OwnText | None:
        """What the second answer of a call is computed from.

        Args:
            info: the attention call.

        Returns:
            The negative text; None where the image attends to no text.
        """
        if info.kind == "self" or info.text_keys is None:
            return None
        return self.own_text or OtherText("uncond")

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
