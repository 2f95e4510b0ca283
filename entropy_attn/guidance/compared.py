"""The losses that T-SAM is compared with, on the same maps, with the settings of their papers as defaults.

The user chooses the words. As in `MapRecorder`, a word is a string of one or several consecutive words ("red circle"),
searched in each prompt, or a position in the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt
from entropy_attn.guidance.similarity import smoothed, token_maps
from entropy_attn.prompts import JoinedText, Text, TokenSelection
from entropy_attn.validation import checked_step_numbers, expected, require_number

Word = str | int


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(Guidance):
    """Attend-and-Excite: every chosen token gets attention somewhere in the image.

    L = max over tokens s of (1 - max over the image of A_s), with A_s the smoothed softmax over the text (without its
    first and last position) of 100 times the attention.

    Source: Chefer et al., "Attend-and-Excite: Attention-Based Semantic Guidance for Text-to-Image Diffusion Models",
    SIGGRAPH 2023, arXiv 2301.13826, Eq. 1.

    Args:
        tokens: the subjects of the prompt, a word or a list of words.
        thresholds: {step: t}: at this step up to `refine_iters` updates are made until every token's max A_s is at
            least t. These steps replace `refine_at`.
        alpha: see `Guidance`.
        steps: see `Guidance`.
        step_range: see `Guidance`.
        refine_iters: see `Guidance`.
        map_size: see `Guidance`.
        layers: see `Guidance`.
        refine_at: leave it empty; use `thresholds`.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is not allowed.
    """

    tokens: Sequence[Word]
    thresholds: Mapping[int, float] = field(default_factory=lambda: {0: 0.05, 10: 0.5, 20: 0.8})

    waits = True

    def __post_init__(self) -> None:
        tokens = TokenSelection(self.tokens).tokens
        if not tokens:
            raise ValueError(expected("tokens", "words or positions", self.tokens))
        object.__setattr__(self, "tokens", tokens)
        if not isinstance(self.thresholds, Mapping):
            raise TypeError(expected("thresholds", "a mapping {step: number}", self.thresholds))
        checked_step_numbers("thresholds", list(self.thresholds))
        for value in self.thresholds.values():
            require_number("thresholds", value)
        object.__setattr__(self, "thresholds", dict(self.thresholds))
        if checked_step_numbers("refine_at", self.refine_at):
            raise ValueError(f"{expected('refine_at', 'no steps', self.refine_at)}; use thresholds={{step: threshold}}")
        super().__post_init__()
        object.__setattr__(self, "refine_at", tuple(sorted(self.thresholds)))

    def __hash__(self) -> int:
        return hash((self.alpha, self.steps, self.tokens, tuple(self.thresholds.items())))

    def is_reached(self, loss: float, step: int) -> bool:
        """Whether the threshold of this step is reached.

        Args:
            loss: the latest loss of one image.
            step: a step of `thresholds`.

        Returns:
            True or False.
        """
        return loss <= max(0.0, 1.0 - self.thresholds[step])

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image (arXiv 2301.13826, Eq. 1).

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d.

        Raises:
            ValueError: a word is not in the prompt.
        """
        chosen = [position for word in self.tokens for position in positions(word, prompt.text)]
        strongest = smoothed(over_text(maps, chosen, prompt)).flatten(1).amax(1)
        return (1.0 - strongest).clamp_min(0.0).amax()


@dataclass(frozen=True, kw_only=True)
class CONFORM(Guidance):
    """CONFORM: the maps of a group's words are similar, those of different groups are not.

    L = mean over the ordered pairs (a, p) of one group of
    -log(exp(c_ap / t) / (exp(c_ap / t) + sum over n of other groups of exp(c_an / t))), with c the cosine similarity of
    maps as in `AttendAndExcite`. The maps of the previous guided step are further members of their groups. L is 0
    without any pair, as at a first step with groups of one word, and with a single group.

    Source: Meral et al., "CONFORM: Contrast is All You Need for High-Fidelity Text-to-Image Diffusion Models", CVPR
    2024, arXiv 2312.06059, the contrastive (InfoNCE) loss.

    Args:
        groups: groups of words, such as [("red", "circle"), ("blue", "square")].
        temperature: t, greater than 0.
        alpha: see `Guidance`.
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
    temperature: float = 0.5
    refine_at: Iterable[int] = (0, 10, 20)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", checked_groups("groups", self.groups, at_least=1))
        require_number("temperature", self.temperature, above=0.0)
        super().__post_init__()

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The contrastive loss of one image (arXiv 2312.06059).

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d.

        Raises:
            ValueError: a word is not in the prompt.
        """
        chosen, group_of = [], []
        for index, group in enumerate(self.groups):
            for word in group:
                found = positions(word, prompt.text)
                chosen += found
                group_of += [index] * len(found)
        features = smoothed(over_text(maps, chosen, prompt)).flatten(1)
        if prompt.previous is not None:
            features = torch.cat([features, smoothed(over_text(prompt.previous, chosen, prompt)).flatten(1)])
            group_of = group_of * 2
        features = F.normalize(features, dim=1)
        return contrastive(features @ features.mT, group_of, self.temperature)


@dataclass(frozen=True, kw_only=True)
class SynGen(Guidance):
    """SynGen: the map of a modifier overlaps that of its noun, and those of no other words.

    L = sum over the pairs (m, n) of dist(m, n) - (1 / |U|) * sum over u in U of (dist(m, u) + dist(n, u)) / 2. dist is
    the symmetric Kullback-Leibler divergence, the mean of both directions, of the maps normalized over the image. U are
    the prompt's tokens that share no noun or modifier with the pair. For a word of several tokens the largest distance
    counts, as in the authors' code.

    Source: Rassin et al., "Linguistic Binding in Diffusion Models: Enhancing Attribute Correspondence through Attention
    Map Alignment", NeurIPS 2023, arXiv 2306.08877, the sum of L_pos and L_neg.

    Args:
        pairs: (modifier, noun), such as [("red", "circle"), ("blue", "square")]. None finds them with spaCy and its
            model "en_core_web_sm", which must be installed.
        alpha: see `Guidance`.
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

    pairs: Sequence[tuple[Word, Word]] | None = None
    step_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.pairs is not None:
            pairs = checked_groups("pairs", self.pairs, at_least=2)
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError(expected("pairs", "pairs (modifier, noun)", self.pairs))
            object.__setattr__(self, "pairs", pairs)
        super().__post_init__()

    def applies_to(self, prompt: Prompt) -> bool:
        """Whether the prompt has a pair.

        Args:
            prompt: the prompt of one image.

        Returns:
            True or False.
        """
        return bool(self.pairs_of(prompt))

    def pairs_of(self, prompt: Prompt) -> tuple[tuple[Word, Word], ...]:
        """The pairs of a prompt.

        Args:
            prompt: the prompt of one image.

        Returns:
            ((modifier, noun), ...): `pairs`, or those that spaCy finds.

        Raises:
            ImportError: `pairs` is None, and spaCy or its model is not installed.
        """
        if self.pairs is not None:
            return tuple(self.pairs)
        written = prompt.text.prompt
        return parsed_pairs(written if isinstance(written, str) else written[0])

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        """The loss of one image (arXiv 2306.08877).

        Args:
            maps: (h, w, s) float32, the cross-attention probabilities of one image.
            prompt: its prompt.

        Returns:
            The loss, 0-d.

        Raises:
            ValueError: a word is not in the prompt.
        """
        pairs = [tuple(tuple(positions(word, prompt.text)) for word in pair) for pair in self.pairs_of(prompt)]
        # The positions of all pairs that share a word with this one: they are not in its U.
        related = {
            pair: {position for other in pairs if set(pair) & set(other) for position in sum(other, ())}
            for pair in pairs
        }
        size = (maps.shape[0], maps.shape[1])
        used = sorted(set(prompt.tokens).union(*related.values()))
        chosen = token_maps(maps.flatten(0, 1), size, used).flatten(1)
        logs = (chosen / chosen.sum(1, keepdim=True)).clamp_min(torch.finfo(chosen.dtype).tiny).log()
        at = {position: row for row, position in enumerate(used)}

        def dist(first: Iterable[int], second: Iterable[int]) -> Tensor:
            each = [symmetric_kl(logs[at[i]], logs[at[j]]) for i, j in itertools.product(first, second)]
            return torch.stack(each).amax()

        total = maps.new_zeros(())
        for modifier, noun in pairs:
            total = total + dist(modifier, noun)
            others = [position for position in prompt.tokens if position not in related[modifier, noun]]
            apart = [dist(word, [position]) for position in others for word in (modifier, noun)]
            if apart:
                total = total - torch.stack(apart).mean()
        return total


def positions(word: Word, text: Text | JoinedText) -> list[int]:
    """The positions of all tokens of a word, everywhere in the text."""
    (choice,) = TokenSelection(word).of_text(text)
    return list(choice.positions)


def over_text(maps: Tensor, chosen: Sequence[int], prompt: Prompt | None = None) -> Tensor:
    """Maps (n, h, w) of these positions after a softmax over the text of 100 times the attention (h, w, s).

    The softmax leaves out the first and last position: the start mark gets most of the attention. In joint attention
    (`prompt.parts`) these are the ones of every text that has a start mark, and the attention is divided by its sum
    over the text: so it is what cross-attention to the same keys would be, and not smaller by the share of the image.
    """
    length = maps.shape[2]
    if prompt is None or not prompt.parts:
        if any(not 0 < position < length - 1 for position in chosen):
            raise ValueError(expected("tokens", f"positions from 1 to {length - 2}", list(chosen)))
        words = (maps[:, :, 1:-1] * 100.0).softmax(-1)
        return token_maps(words.flatten(0, 1), (maps.shape[0], maps.shape[1]), [each - 1 for each in chosen])
    outer = set(prompt.text.outer)
    if outer & set(chosen):
        raise ValueError(expected("tokens", f"positions without those of marks, {sorted(outer)}", list(chosen)))
    kept = [position for position in range(length) if position not in outer]
    of_text = maps / maps.sum(-1, keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    words = (of_text[:, :, kept] * 100.0).softmax(-1)
    return token_maps(words.flatten(0, 1), (maps.shape[0], maps.shape[1]), [kept.index(each) for each in chosen])


def contrastive(cosines: Tensor, group_of: Sequence[int], temperature: float) -> Tensor:
    """The loss of `CONFORM` from the cosines (n, n) of n members and the index of each one's group."""
    group = torch.tensor(group_of, device=cosines.device)
    same = group[:, None] == group
    pairs = same & ~torch.eye(len(group_of), dtype=torch.bool, device=cosines.device)
    if len(set(group_of)) in (1, len(group_of)):  # no second group, or no pair
        return cosines.sum() * 0.0
    logits = cosines / temperature
    others = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    each = torch.logaddexp(logits, others) - logits
    return each[pairs].mean()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """The mean of both directions, for distributions given by their logarithms."""
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum()


def parsed_pairs(prompt: str) -> tuple[tuple[str, str], ...]:
    """The (modifier, noun) pairs of a prompt, parsed by spaCy."""
    try:
        import spacy

        parse = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ImportError(
            "pairs: expected [(modifier, noun)], because spaCy or its model en_core_web_sm is not installed, got None"
        ) from error
    kinds = {"amod", "nmod", "compound", "npadvmod", "advmod", "acomp"}
    return tuple(
        (child.text, word.text)
        for word in parse(prompt)
        if word.pos_ in ("NOUN", "PROPN") and word.dep_ not in kinds
        for child in word.children
        if child.dep_ in kinds
    )


def checked_groups(name: str, groups: object, at_least: int) -> tuple[tuple[Word, ...], ...]:
    """The groups as tuples, each of `at_least` words or positions."""
    if not isinstance(groups, (tuple, list)) or not groups:
        raise TypeError(expected(name, "a list of tuples of words or positions", groups))
    if any(isinstance(group, (str, int)) or len(group) < at_least for group in groups):
        raise ValueError(expected(name, f"tuples of at least {at_least} words or positions", groups))
    try:
        return tuple(TokenSelection(tuple(group)).tokens or () for group in groups)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{expected(name, 'tuples of words or positions', groups)}: {error}") from None
