"""Losses on an image that attends to the texts of two encoders and to itself, against float64 writings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from entropy_attn.guidance import JEDI, TSAM, AttendAndExcite, Prompt
from entropy_attn.guidance.compared import over_text
from entropy_attn.prompts import JoinedText, TextPart
from tests.guidance.test_compared import WORDS, Tokenizer
from tests.guidance.test_jedi import oracle as jedi


class WithoutStart(Tokenizer):
    """As T5: no start token; end token 9 and padding 8."""

    bos_token_id = None

    def __call__(self, prompt: str, add_special_tokens: bool = True, **options: Any) -> dict[str, list[int]]:
        ids = [WORDS.index(word) + 1 for word in prompt.split()]
        if not add_special_tokens:
            return {"input_ids": ids}
        length = options["max_length"]
        used = len(ids) + 1
        return {"input_ids": [*ids, 9, *[8] * (length - used)], "attention_mask": [1] * used + [0] * (length - used)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["</s>" if i == 9 else "<pad>" if i == 8 else f"▁{WORDS[i - 1]}" for i in ids]


FIRST, LENGTH = 8, 15  # positions of the first text and of both
TOKENS = ((1, 2, 3, 4, 5), (8, 9, 10, 11, 12))


def prompt(**changed: Any) -> Prompt:
    parts = [TextPart(Tokenizer(), FIRST), TextPart(WithoutStart(), None)]
    text = JoinedText("red circle and blue square", parts, LENGTH)
    return Prompt(text, text.real, parts=text.ranges, **changed)


def maps(share: float = 0.2, size: tuple[int, int] = (4, 6)) -> torch.Tensor:
    """Each row sums to `share`: the rest is the image's."""
    return share * torch.rand(*size, LENGTH, generator=torch.Generator().manual_seed(0)).double().softmax(-1)


def test_the_texts():
    given = prompt()
    assert given.tokens_of_parts == TOKENS and given.tokens == TOKENS[0] + TOKENS[1]
    assert given.parts == ((0, FIRST), (FIRST, LENGTH)) and given.text.outer == (0, FIRST - 1)
    assert given.text.find("blue").positions == (4, 11)


@pytest.mark.parametrize("share", [1.0, 0.2, 1e-6])
def test_the_softmax_over_the_text_is_that_of_cross_attention(share):
    """Whatever part of the attention is the image's; the marks of the text that has a start mark are left out."""
    chosen = [2, 8, 11]
    found = over_text(maps(share), chosen, prompt()).numpy()
    shares = maps(1.0).numpy()
    kept = [position for position in range(LENGTH) if position not in (0, FIRST - 1)]
    expected = np.exp(100 * shares[..., chosen]) / np.exp(100 * shares[..., kept]).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.moveaxis(expected, -1, 0), rtol=1e-9)
    with pytest.raises(ValueError, match=r"marks, \[0, 7\], got \[7\]"):
        over_text(maps(), [7], prompt())


def smooth(grid: np.ndarray) -> np.ndarray:
    side = math.exp(-1.0) / (1.0 + 2.0 * math.exp(-1.0))
    weights, padded = (side, 1.0 - 2.0 * side, side), np.pad(grid, 1, mode="reflect")
    height, width = grid.shape
    return sum(
        weights[i] * weights[j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3)
    )  # fmt: skip


def tsam_of(values: np.ndarray, T: np.ndarray, tokens: tuple[int, ...]) -> float:
    """Eq. 14 with the normalizations of the released code, over one text."""
    flat = [smooth(values[..., token]).ravel() for token in tokens]
    total, n = 0.0, len(tokens)
    for i in range(n):
        cosines = [flat[i] @ flat[k] / math.sqrt((flat[i] @ flat[i]) * (flat[k] @ flat[k])) for k in range(i + 1)]
        powers = [T[tokens[i], tokens[k]] ** 4 for k in range(i + 1)]
        total += (
            (i + 1) / n * sum(abs(p / sum(powers) - c / sum(cosines)) for p, c in zip(powers, cosines, strict=True))
        )
    return total


def attention() -> torch.Tensor:
    """Causal in the first text, not in the second, 0 between them."""
    rows = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)).double()
    rows[:FIRST, :FIRST] = rows[:FIRST, :FIRST].tril()
    rows[:FIRST, FIRST:] = rows[FIRST:, :FIRST] = 0.0
    return rows / rows.sum(-1, keepdim=True)


def test_tsam_is_the_mean_over_the_texts():
    given, T = maps().requires_grad_(), attention()
    loss = TSAM().loss(given, prompt(attention=T))
    values = given.detach().numpy()

    def expected(of: np.ndarray) -> float:
        return sum(tsam_of(of, T.numpy(), tokens) for tokens in TOKENS) / 2

    assert loss.item() == pytest.approx(expected(values), rel=1e-9)
    (gradient,) = torch.autograd.grad(loss, given)
    for at in ((1, 2, 4), (3, 5, 11), (0, 0, 8), (2, 2, 13)):  # the last is no word
        moved = []
        for change in (1e-7, -1e-7):
            other = values.copy()
            other[at] += change
            moved.append(expected(other))
        assert gradient[at].item() == pytest.approx((moved[0] - moved[1]) / 2e-7, rel=1e-4, abs=1e-7)


def test_the_matrices_are_of_each_text_apart():
    guidance, given = TSAM(), prompt(attention=attention())
    T, S = guidance.text_matrix(given), guidance.image_matrix(maps(), given)
    for matrix in (T, S):
        assert matrix.shape == (10, 10) and not matrix[:5, 5:].any() and not matrix[5:, :5].any()
    torch.testing.assert_close(T.sum(1), torch.ones(10).double())
    assert not T.triu(1).any()  # T5's attention to later words is cut off before the rows are normalized


def test_a_text_with_one_word_counts_for_nothing():
    whole = prompt(attention=attention())
    alone = Prompt(whole.text, (1, 2, 3, 8), whole.attention, parts=whole.parts)
    single = Prompt(whole.text, (1, 2, 3), whole.attention)
    assert TSAM().applies_to(alone)
    torch.testing.assert_close(TSAM().loss(maps(), alone), TSAM().loss(maps(), single))
    assert not TSAM().applies_to(Prompt(whole.text, (1, 8), whole.attention, parts=whole.parts))


def test_words_are_those_of_both_texts():
    """A subject of JEDI has the positions of both; of Attend-and-Excite's tokens the weakest one counts."""
    groups = [("red", "circle"), ("blue", "square")]
    loss = JEDI(groups=groups).loss(maps(), prompt())
    assert loss.item() == pytest.approx(jedi(maps().numpy(), [[1, 8, 2, 9], [4, 11, 5, 12]], 0.01), rel=1e-12)
    found = AttendAndExcite(tokens=("circle",)).loss(maps(), prompt()).item()
    peaks = [smooth(grid).max() for grid in over_text(maps(), [2, 9], prompt()).numpy()]
    assert found == pytest.approx(1.0 - min(peaks), rel=1e-9)
