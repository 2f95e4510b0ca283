"""T against numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from entropy_attn.guidance import real_tokens, text_self_attention
from entropy_attn.guidance.text import sharpen

BOS, EOS = 8, 9
IDS = torch.tensor([[BOS, 1, 2, EOS, EOS]])


def two_words(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Two layers; in their mean, the rows of the real tokens are (0.4, 0) and (0.1, 0.3)."""
    layers = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer, rows in enumerate(([[0.5, 0.0], [0.2, 0.2]], [[0.3, 0.0], [0.0, 0.4]])):
        layers[layer, 0, 1:3, 1:3] = torch.tensor(rows)
    return layers.to(dtype)


def test_the_released_form_applies_the_power_before_normalization():
    (found,) = text_self_attention(two_words(), IDS, EOS, gamma=2.0)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.1, 0.9]]))  # (0.01, 0.09) / 0.1


def test_the_papers_form_applies_the_power_after_normalization():
    (found,) = text_self_attention(two_words(), IDS, EOS, gamma=2.0, variant="paper")
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0], [0.0625, 0.5625]]))  # (0.25, 0.75)^2


def test_the_default_power_is_four():
    (found,) = text_self_attention(two_words(), IDS, EOS)
    torch.testing.assert_close(found[1], torch.tensor([1.0, 81.0]) / 82)


def test_real_tokens_are_between_start_and_end():
    """The first end token counts: CLIP pads with end tokens, the second encoder of SDXL with another token."""
    ids = torch.tensor([[BOS, 1, 2, EOS, EOS], [BOS, 3, EOS, 0, 0], [BOS, EOS, EOS, EOS, EOS], [BOS, 1, 2, 3, EOS]])
    assert real_tokens(ids, EOS) == [[1, 2], [1], [], [1, 2, 3]]
    attentions = torch.rand(3, 4, 5, 5)
    found = text_self_attention(attentions, ids, EOS)
    assert [tuple(each.shape) for each in found] == [(2, 2), (1, 1), (0, 0), (3, 3)]
    assert found[1].item() == 1.0


def test_the_prompts_of_a_batch_are_independent():
    attentions, ids = torch.rand(3, 2, 5, 5), torch.tensor([[BOS, 1, 2, EOS, EOS], [BOS, 1, 2, 3, EOS]])
    together = text_self_attention(attentions, ids, EOS)
    for prompt, found in enumerate(together):
        (alone,) = text_self_attention(attentions[:, prompt : prompt + 1], ids[prompt : prompt + 1], EOS)
        assert torch.equal(found, alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_is_float32_for_every_dtype(dtype):
    (found,) = text_self_attention(two_words(dtype), IDS, EOS)
    (expected,) = text_self_attention(two_words(dtype).float(), IDS, EOS)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert text_self_attention(two_words(torch.float64), IDS, EOS)[0].dtype == torch.float64


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_large_powers_and_tiny_probabilities_stay_finite(variant):
    rows = torch.tensor([[1e-12, 0.0], [1e-12, 3e-12]])
    torch.testing.assert_close(sharpen(rows, 2.0, variant), sharpen(rows * 1e11, 2.0, variant))
    assert sharpen(rows, 300.0, variant).isfinite().all()


def test_gradients_flow():
    attentions = two_words(torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: text_self_attention(a, IDS, EOS)[0], attentions, atol=1e-4)


@pytest.mark.parametrize(
    "changed, match",
    [
        ({"attentions": torch.rand(2, 5, 5)}, "attentions: expected shape"),
        ({"attentions": torch.ones(2, 1, 5, 5, dtype=torch.long)}, "floating-point"),
        ({"input_ids": IDS[:, :4]}, "input_ids: expected shape"),
        ({"eos_token_id": 7}, "eos_token_id: expected .*got 7"),
        ({"variant": "other"}, "variant: expected .*got 'other'"),
    ],
)
def test_refusals(changed, match):
    given = {"attentions": two_words(), "input_ids": IDS, "eos_token_id": EOS, **changed}
    with pytest.raises((TypeError, ValueError), match=match):
        text_self_attention(**given)


def test_an_encoder_that_is_not_causal_and_has_no_start_mark():
    """T5: the first token is a word. The released form is over the tokens up to the row's own, the paper's over all."""
    ids = torch.tensor([[1, 2, 3, EOS, 0]])
    attentions = torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert real_tokens(ids, EOS, start_mark=False) == [[0, 1, 2]]
    rows = attentions.mean(0)[0, :3, :3]
    (released,) = text_self_attention(attentions, ids, EOS, start_mark=False)
    (paper,) = text_self_attention(attentions, ids, EOS, start_mark=False, variant="paper")
    for i in range(3):
        for j in range(3):
            expected = rows[i, j] ** 4 / sum(rows[i, k] ** 4 for k in range(i + 1)) if j <= i else 0.0
            assert released[i, j].item() == pytest.approx(float(expected), rel=1e-12)
            assert paper[i, j].item() == pytest.approx(float((rows[i, j] / rows[i].sum()) ** 4), rel=1e-12)
    with pytest.raises(TypeError, match="start_mark"):
        real_tokens(ids, EOS, start_mark=0)
