"""S, the loss and the settings of T-SAM against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from entropy_attn.guidance import TSAM, Prompt, attention_similarity, tsam_loss
from entropy_attn.guidance.similarity import SMOOTHING, smoothed

# Columns: start token, three words with the cosines 0.6 (1, 2), 0 (1, 3), 0.8 (2, 3), end token. Norms do not matter.
MAPS = torch.tensor([[9.0, 1.0, 3.0, 0.0, 2.0], [1.0, 0.0, 4.0, 0.5, 7.0]])
SIZE = (1, 2)


def test_similarity_of_the_released_form_sums_over_the_tokens_so_far():
    found = attention_similarity(MAPS, SIZE, [1, 2, 3], smooth=False)
    expected = torch.tensor([[1.0, 0.6, 0.0], [0.6 / 1.6, 1 / 1.6, 0.8 / 1.6], [0.0, 0.8 / 1.8, 1 / 1.8]])
    torch.testing.assert_close(found, expected)


def test_similarity_of_the_papers_form_sums_over_all_tokens():
    found = attention_similarity(MAPS, SIZE, torch.tensor([1, 2, 3]), variant="paper", smooth=False)
    expected = torch.tensor([[1 / 1.6, 0.6 / 1.6, 0.0], [0.25, 1 / 2.4, 0.8 / 2.4], [0.0, 0.8 / 1.8, 1 / 1.8]])
    torch.testing.assert_close(found, expected)


def test_smoothing_weights():
    """exp(-(1 / 2 sigma)^2) at sigma = 0.5 is 1/e; a Gaussian with that sigma would be (0.107, 0.787, 0.107)."""
    assert SMOOTHING == pytest.approx((0.212, 0.576, 0.212), abs=5e-4) and sum(SMOOTHING) == pytest.approx(1.0)


def test_smoothing_mirrors_at_the_borders():
    side, middle, _ = SMOOTHING
    dot = torch.zeros(1, 3, 4)
    dot[0, 1, 1] = 1.0
    rows = torch.tensor([2 * side, middle, 2 * side])  # at the border, the mirrored neighbor counts twice
    columns = torch.tensor([2 * side, middle, side, 0.0])
    torch.testing.assert_close(smoothed(dot)[0], rows[:, None] * columns)
    torch.testing.assert_close(smoothed(torch.ones(2, 5, 3)), torch.ones(2, 5, 3))
    torch.testing.assert_close(smoothed(torch.ones(2, 1, 3)), torch.ones(2, 1, 3))  # a single row has nothing to mirror


def test_similarity_smooths_once_and_reads_maps_by_rows():
    maps = torch.rand(12, 6)
    images = smoothed(maps[:, [4, 1]].T.reshape(2, 3, 4)).flatten(1)
    cosine = torch.cosine_similarity(images[0], images[1], dim=0)
    found = attention_similarity(maps, (3, 4), [4, 1])
    torch.testing.assert_close(found[1], torch.stack([cosine, torch.ones(())]) / (1 + cosine))
    assert not torch.allclose(found, attention_similarity(maps, (4, 3), [4, 1]))


def test_loss_weights_rows_by_their_index_and_is_causal():
    T = torch.tensor([[1.0, 7.0, 7.0], [0.25, 0.75, 7.0], [0.5, 0.25, 0.25]])
    S = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.5, 0.0], [0.1, 0.4, 0.5]])
    # rows: 0.5, 0.25 + 0.25, 0.4 + 0.15 + 0.25
    torch.testing.assert_close(tsam_loss(T, S), torch.tensor(0.5 / 3 + 2 * 0.5 / 3 + 0.8))


def test_first_row_of_the_released_form_is_zero():
    T = torch.tensor([[1.0, 0.0], [0.1, 0.9]])
    loss = tsam_loss(T, attention_similarity(MAPS, SIZE, [1, 2], smooth=False))
    torch.testing.assert_close(loss, torch.tensor(0.275 * 2))  # |0.1 - 0.375| + |0.9 - 0.625|
    loss = tsam_loss(T, attention_similarity(MAPS, SIZE, [1, 2], variant="paper", smooth=False))
    torch.testing.assert_close(loss, torch.tensor(0.5 * 0.375 + 0.275 * 2))


@pytest.mark.parametrize("tokens", [[], [2]])
def test_a_single_word_has_zero_loss(tokens):
    maps = MAPS.clone().requires_grad_()
    similarity = attention_similarity(maps, SIZE, tokens)
    loss = tsam_loss(torch.ones(len(tokens), len(tokens)), similarity)
    assert loss.item() == 0.0
    if tokens:
        (gradient,) = torch.autograd.grad(loss, maps)
        assert gradient.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_is_float32_for_every_dtype(dtype):
    maps = torch.rand(16, 5).to(dtype)
    found = attention_similarity(maps, (4, 4), [1, 2, 3])
    assert found.dtype == torch.float32 and torch.equal(found, attention_similarity(maps.float(), (4, 4), [1, 2, 3]))
    assert tsam_loss(torch.eye(3, dtype=dtype), torch.eye(3, dtype=dtype)).dtype == torch.float32


def test_autocast_does_not_reduce_precision():
    maps = torch.rand(16, 5)
    expected = attention_similarity(maps, (4, 4), [1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attention_similarity(maps, (4, 4), [1, 2, 3]), expected)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_gradients(variant):
    maps = torch.rand(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    T = torch.rand(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(maps):
        return tsam_loss(T, attention_similarity(maps, (3, 4), [1, 2, 3], variant=variant))

    assert torch.autograd.gradcheck(loss, maps)
    assert torch.autograd.grad(loss(maps), maps)[0][:, [0, 4]].abs().max() == 0  # start and end have no influence


def test_maps_of_zeros_stay_finite():
    maps = torch.zeros(4, 3, requires_grad=True)
    loss = tsam_loss(torch.eye(2), attention_similarity(maps, (2, 2), [1, 2]))
    assert loss.isfinite() and torch.autograd.grad(loss, maps)[0].isfinite().all()


def test_functions_refuse():
    with pytest.raises(ValueError, match="size"):
        attention_similarity(MAPS, (2, 2), [1])
    with pytest.raises(ValueError, match=r"tokens: expected .*got \[5\]"):
        attention_similarity(MAPS, SIZE, [5])
    with pytest.raises(ValueError, match="variant: expected"):
        attention_similarity(MAPS, SIZE, [1], variant="code")
    with pytest.raises(ValueError, match="T, S: expected"):
        tsam_loss(torch.eye(2), torch.eye(3))


def two_words() -> Prompt:
    """The words at positions 1 and 2 attend to each other with (0.4, 0) and (0.1, 0.3)."""
    attention = torch.rand(5, 5, generator=torch.Generator().manual_seed(0))
    attention[1:3, 1:3] = torch.tensor([[0.4, 0.0], [0.1, 0.3]])
    return Prompt(None, (1, 2), attention)


@pytest.mark.parametrize(
    "settings, second_row",
    [
        ({}, [1 / 82, 81 / 82]),
        ({"gamma": 2.0}, [0.1, 0.9]),
        ({"gamma": 2.0, "variant": "paper"}, [0.0625, 0.5625]),
        ({"target": lambda prompt: torch.tensor([[1.0, 0.0], [0.5, 0.5]]) * len(prompt)}, [1.0, 1.0]),
        ({"target": lambda prompt: None, "gamma": 2.0}, [0.1, 0.9]),
    ],
)
def test_the_text_matrix_follows_the_settings(settings, second_row):
    torch.testing.assert_close(TSAM(**settings).text_matrix(two_words())[1], torch.tensor(second_row))


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_loss_of_an_image_compares_its_maps_with_the_text(variant):
    maps = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1))
    by_rows = torch.stack([maps[row, column] for row in range(2) for column in range(3)])
    S = attention_similarity(by_rows, (2, 3), [1, 2], variant=variant)
    T = [[1.0, 0.0], [0.1, 0.9]] if variant == "released" else [[1.0, 0.0], [0.0625, 0.5625]]
    found = TSAM(gamma=2.0, variant=variant).loss(maps, two_words())
    torch.testing.assert_close(found, tsam_loss(torch.tensor(T), S))


def test_settings():
    released, paper = TSAM(), TSAM(variant="paper")
    assert (released.alpha, released.gamma, released.variant) == (40.0, 4.0, "released")
    assert released.steps == tuple(range(25)) and released.refine_at == () and released.refine_iters == 20
    assert released.step_range == (1.0, 0.5) and paper.step_range == (1.0, 1.0)
    assert TSAM() == released != paper and hash(TSAM()) == hash(released)


@pytest.mark.parametrize(
    "setting, error",
    [
        ({"alpha": "40"}, TypeError),
        ({"alpha": -1.0}, ValueError),
        ({"alpha": math.nan}, ValueError),
        ({"gamma": -1.0}, ValueError),
        ({"steps": 25}, TypeError),
        ({"steps": (-1,)}, ValueError),
        ({"variant": "code"}, ValueError),
        ({"refine_at": 10}, TypeError),
        ({"refine_iters": -1}, ValueError),
        ({"step_range": 1.0}, TypeError),
        ({"step_range": (1.0, -0.5)}, ValueError),
        ({"map_size": 16}, ValueError),
        ({"map_size": (0, 16)}, ValueError),
        ({"target": torch.eye(2)}, TypeError),
    ],
)
def test_settings_are_checked(setting, error):
    with pytest.raises(error, match=f"{next(iter(setting))}: expected"):
        TSAM(**setting)
