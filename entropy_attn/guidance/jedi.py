"""JEDI: the maps of the words of one subject are one distribution over the image, those of two subjects disjoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_attn.guidance.compared import Word, checked_groups, positions
from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.similarity import token_maps
from entropy_attn.validation import require_bool, require_number


@dataclass(frozen=True, kw_only=True)
class JEDI(Guidance):
    """JEDI: Jensen-Shannon divergences between the maps of the subjects' words.

    With p_i the map of a token, normalized over the image to a distribution, and m_s the mean of p_i over the tokens of
    the s-th subject:

    L = mean over s of D({p_i of s}) + 1 - D({m_s}) + diversity * mean over s of (1 - H(m_s) / ln M).

    D is the Jensen-Shannon divergence of n distributions divided by its maximum ln n, and 0 for n = 1; H is the entropy
    of a map of M tokens. The first term unites the tokens of a subject, the second separates the subjects, and is left
    out where there is one subject; the third keeps a map from shrinking to a point. The update is the sign of the
    gradient: every latent moves by the step size.

    Source: Bill, Simsar and Hofmann, "JEDI: The Force of Jensen-Shannon Divergence in Disentangling Diffusion Models",
    arXiv 2505.19166. Defaults are those of the authors' code for Stable Diffusion 3.5 with 28 steps. It differs from
    theirs in p_i: they have a softmax over the image of the scores' mean over the heads, of both directions, for every
    layer apart, and the mean of their losses.

    Args:
        groups: the words of each subject, such as [("red", "circle"), ("blue", "square")].
        diversity: weight of the third term, at least 0.
        sign: move against the sign of the gradient; False is the gradient itself, which needs another alpha.
        alpha: see `Guidance`; with `sign`, how far every latent moves.
        steps: see `Guidance`.
        step_range: see `Guidance`.
        refine_at: see `Guidance`.
        refine_iters: see `Guidance`.
        map_size: see `Guidance`.
        layers: see `Guidance`.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is not allowed.
    """

    groups: Sequence[Sequence[Word]]
    diversity: float = 0.01
    sign: bool = True
    alpha: float = 3e-3
    steps: Iterable[int] = range(18)
    step_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", checked_groups("groups", self.groups, at_least=1))
        require_number("diversity", self.diversity, least=0.0)
        require_bool("sign", self.sign)
        super().__post_init__()

    def direction(self, gradient: Tensor, prompts: Sequence[Prompt], number: int) -> Tensor:
        """The sign of the gradient, or the gradient.

        Args:
            gradient: (B, ...), that of every image's loss on its latents.
            prompts: the prompts of the B images.
            number: of this evaluation in the generation, from 0.

        Returns:
            A tensor of the same shape.
        """
        return gradient.sign() if self.sign else gradient

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image (arXiv 2505.19166).

        Args:
            maps: (h, w, s) float32, the attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d, from 0 to 2 + `diversity`.

        Raises:
            ValueError: a word is not in the prompt.
        """
        flat, size = maps.flatten(0, 1), (maps.shape[0], maps.shape[1])
        within, means = [], []
        for group in self.groups:
            chosen = [position for word in group for position in positions(word, prompt.text)]
            each = token_maps(flat, size, chosen).flatten(1)
            each = each / each.sum(1, keepdim=True).clamp_min(torch.finfo(each.dtype).tiny)
            within.append(divergence(each))
            means.append(each.mean(0))
        subjects = torch.stack(means)
        total = torch.stack(within).mean()
        if len(subjects) > 1:
            total = total + 1.0 - divergence(subjects)
        return total + self.diversity * (1.0 - relative_entropy(subjects)).mean()


def divergence(distributions: Tensor) -> Tensor:
    """D: the Jensen-Shannon divergence of n distributions (n, M) in units of ln n, from 0 to 1; 0 for n = 1."""
    if len(distributions) == 1:
        return distributions.sum() * 0.0
    mean = distributions.mean(0, keepdim=True)
    return (distributions * (_log(distributions) - _log(mean))).sum(1).mean() / math.log(len(distributions))


def relative_entropy(distributions: Tensor) -> Tensor:
    """The entropies (n,) of distributions (n, M) in units of ln M; 1 for M = 1."""
    if distributions.shape[1] == 1:
        return distributions.sum(1) * 0.0 + 1.0
    return -(distributions * _log(distributions)).sum(1) / math.log(distributions.shape[1])


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm, of 0 too; it is multiplied with 0 there."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
