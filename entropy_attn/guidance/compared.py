"""The losses that T-SAM is compared with, on the same maps, with their papers' settings as defaults.

They need to be told which words matter. Words are given as in `MapRecorder`: a word or several in a row ("red circle"),
found in each prompt, or a position in the text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from entropy_attn.guidance.method import Guidance, Prompt, checked_steps
from entropy_attn.guidance.similarity import smoothed, token_maps
from entropy_attn.prompts import Text, TokenSelection
from entropy_attn.validation import require_number

Word = str | int


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite(Guidance):
    """Every chosen token is to be attended to somewhere: Chefer et al., SIGGRAPH 2023, arXiv 2301.13826.

    The loss is max over the tokens of 1 - max over the picture of the token's map, which is a softmax over the text
    (without its first and last position) of 100 times the attention, smoothed.

    tokens: the subjects of the prompt.
    thresholds: {step: how strongly every token is to be attended to before that step's update}; up to `refine_iters`
        updates are made until it is. These steps take the place of `refine_at`.
    """

    tokens: Sequence[Word]
    thresholds: Mapping[int, float] = field(default_factory=lambda: {0: 0.05, 10: 0.5, 20: 0.8})

    waits = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", TokenSelection(self.tokens).tokens or _refuse("tokens", self.tokens))
        if not isinstance(self.thresholds, Mapping):
            raise TypeError(f"thresholds={self.thresholds!r}: a mapping from steps to numbers is needed")
        checked_steps("thresholds", list(self.thresholds))
        for value in self.thresholds.values():
            require_number("thresholds", value)
        object.__setattr__(self, "thresholds", dict(self.thresholds))
        if checked_steps("refine_at", self.refine_at):
            raise ValueError(f"refine_at={self.refine_at!r}: give the steps as thresholds={{step: threshold}}")
        super().__post_init__()
        object.__setattr__(self, "refine_at", tuple(sorted(self.thresholds)))

    def __hash__(self) -> int:
        return hash((self.alpha, self.steps, self.tokens, tuple(self.thresholds.items())))

    def is_reached(self, loss: float, step: int) -> bool:
        return loss <= max(0.0, 1.0 - self.thresholds[step])

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        places = [place for word in self.tokens for place in positions(word, prompt.text)]
        strongest = smoothed(over_text(maps, places)).flatten(1).amax(1)
        return (1.0 - strongest).clamp_min(0.0).amax()


@dataclass(frozen=True, kw_only=True)
class CONFORM(Guidance):
    """Words of a group are to be attended to alike, those of different groups apart: Meral et al., CVPR 2024.

    arXiv 2312.06059, its contrastive loss: the mean, over every ordered pair (a, p) of one group, of
    -log(exp(c_ap / t) / (exp(c_ap / t) + sum over n of other groups of exp(c_an / t))), with c the cosine similarity of
    maps as in Attend-and-Excite, and the maps of the guided step before as further members of their groups. It is zero
    without a pair, as in a first step with groups of one, and where there is one group alone.

    groups: of words, such as [("red", "circle"), ("blue", "square")].
    temperature: t.
    """

    groups: Sequence[Sequence[Word]]
    temperature: float = 0.5
    refine_at: Iterable[int] = (0, 10, 20)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", _checked_groups("groups", self.groups, at_least=1))
        require_number("temperature", self.temperature)
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature!r}: a number above 0 is needed")
        super().__post_init__()

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        places, owners = [], []
        for owner, group in enumerate(self.groups):
            for word in group:
                found = positions(word, prompt.text)
                places += found
                owners += [owner] * len(found)
        features = smoothed(over_text(maps, places)).flatten(1)
        if prompt.previous is not None:
            features = torch.cat([features, smoothed(over_text(prompt.previous, places)).flatten(1)])
            owners = owners * 2
        features = F.normalize(features, dim=1)
        return contrastive(features @ features.mT, owners, self.temperature)


@dataclass(frozen=True, kw_only=True)
class SynGen(Guidance):
    """A modifier is to be attended to where its noun is, and nowhere else: Rassin et al., NeurIPS 2023.

    arXiv 2306.08877: the sum over the pairs of dist(m, n) - (1 / |U|) * sum over u in U of
    (dist(m, u) + dist(n, u)) / 2. dist is the symmetric Kullback-Leibler divergence, half of both directions, of the
    maps as distributions over the picture; U are the prompt's other tokens, those that share no noun or modifier with
    the pair. Of a word of several tokens the farthest one counts, as in the authors' code.

    pairs: (modifier, noun), such as [("red", "circle"), ("blue", "square")]; None has spaCy find them, where it and its
        model "en_core_web_sm" are installed.
    """

    pairs: Sequence[tuple[Word, Word]] | None = None
    step_range: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.pairs is not None:
            pairs = _checked_groups("pairs", self.pairs, at_least=2)
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError(f"pairs={self.pairs!r}: pairs (modifier, noun) are needed")
            object.__setattr__(self, "pairs", pairs)
        super().__post_init__()

    def applies_to(self, prompt: Prompt) -> bool:
        return bool(self.pairs_of(prompt))

    def pairs_of(self, prompt: Prompt) -> tuple[tuple[Word, Word], ...]:
        """The pairs of this prompt."""
        return parsed_pairs(prompt.text.prompt) if self.pairs is None else self.pairs

    def loss(self, maps: Tensor, prompt: Prompt) -> Tensor:
        pairs = [tuple(tuple(positions(word, prompt.text)) for word in pair) for pair in self.pairs_of(prompt)]
        # The words of all pairs that hang together: those have no part in each other's U.
        related = {
            pair: {place for other in pairs if set(pair) & set(other) for place in sum(other, ())} for pair in pairs
        }
        size = tuple(maps.shape[:2])
        used = sorted(set(prompt.tokens) | {place for places in related.values() for place in places})
        chosen = token_maps(maps.flatten(0, 1), size, used).flatten(1)
        logs = (chosen / chosen.sum(1, keepdim=True)).clamp_min(torch.finfo(chosen.dtype).tiny).log()
        at = {place: row for row, place in enumerate(used)}

        def dist(first: Iterable[int], second: Iterable[int]) -> Tensor:
            each = [symmetric_kl(logs[at[i]], logs[at[j]]) for i, j in itertools.product(first, second)]
            return torch.stack(each).amax()

        total = maps.new_zeros(())
        for modifier, noun in pairs:
            total = total + dist(modifier, noun)
            others = [place for place in prompt.tokens if place not in related[modifier, noun]]
            apart = [dist(word, [place]) for place in others for word in (modifier, noun)]
            if apart:
                total = total - torch.stack(apart).mean()
        return total


def positions(word: Word, text: Text) -> list[int]:
    """Where this word stands in the text, all its tokens and places."""
    (choice,) = TokenSelection(word).of_text(text)
    return list(choice.positions)


def over_text(maps: Tensor, places: Sequence[int]) -> Tensor:
    """Maps (n, h, w) of these positions after a softmax over the text of 100 times the attention (h, w, s).

    Its first and last position have no part in it, so that the start mark, which draws most attention, hides nothing.
    """
    length = maps.shape[2]
    if any(not 0 < place < length - 1 for place in places):
        raise ValueError(f"tokens: positions {list(places)}: numbers from 1 to {length - 2} are needed")
    words = (maps[:, :, 1:-1] * 100.0).softmax(-1)
    return token_maps(words.flatten(0, 1), tuple(maps.shape[:2]), [place - 1 for place in places])


def contrastive(cosines: Tensor, owners: Sequence[int], temperature: float) -> Tensor:
    """The loss of `CONFORM` from the cosines (n, n) of members of the groups `owners` (n)."""
    group = torch.tensor(owners, device=cosines.device)
    same = group[:, None] == group
    pairs = same & ~torch.eye(len(owners), dtype=torch.bool, device=cosines.device)
    if len(set(owners)) in (1, len(owners)):  # nothing to part, or no pair to bring together
        return cosines.sum() * 0.0
    logits = cosines / temperature
    others = logits.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    each = torch.logaddexp(logits, others) - logits
    return each[pairs].mean()


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """Half of both directions, of distributions that are given by their logarithms."""
    return 0.5 * ((first.exp() - second.exp()) * (first - second)).sum()


def parsed_pairs(prompt: str) -> tuple[tuple[str, str], ...]:
    """(modifier, noun) of a prompt by spaCy's parse."""
    try:
        import spacy

        parse = spacy.load("en_core_web_sm")
    except (ImportError, OSError) as error:
        raise ImportError(
            "SynGen(pairs=None) needs spaCy and its model en_core_web_sm; without them, give pairs=[(modifier, noun)]"
        ) from error
    kinds = {"amod", "nmod", "compound", "npadvmod", "advmod", "acomp"}
    return tuple(
        (child.text, word.text)
        for word in parse(prompt)
        if word.pos_ in ("NOUN", "PROPN") and word.dep_ not in kinds
        for child in word.children
        if child.dep_ in kinds
    )


def _checked_groups(name: str, groups: object, at_least: int) -> tuple[tuple[Word, ...], ...]:
    if not isinstance(groups, (tuple, list)) or not groups:
        raise TypeError(f"{name}={groups!r}: a list of tuples of words or positions is needed")
    if any(isinstance(group, (str, int)) or len(group) < at_least for group in groups):
        raise ValueError(f"{name}={groups!r}: each must have at least {at_least} words or positions")
    try:
        return tuple(TokenSelection(tuple(group)).tokens for group in groups)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={groups!r}: {error}") from None


def _refuse(name: str, value: object) -> None:
    raise ValueError(f"{name}={value!r}: words or positions are needed; this loss does not find them itself")
