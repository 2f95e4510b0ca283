"""The losses of other methods against numbers computed by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from entropy_attn.guidance import CONFORM, AttendAndExcite, Prompt, SynGen
from entropy_attn.guidance.compared import contrastive, over_text, symmetric_kl
from entropy_attn.guidance.method import Custom, as_guidance
from entropy_attn.guidance.similarity import smoothed
from entropy_attn.prompts import Text

WORDS = ["red", "circle", "and", "blue", "square"]


class Tokenizer:
    """One token per word; start token 0, end token 9, eight positions."""

    model_max_length, bos_token_id, eos_token_id = 8, 0, 9

    def __call__(self, prompt: str, add_special_tokens: bool = True, **_: Any) -> dict[str, list[int]]:
        ids = [WORDS.index(word) + 1 if word in WORDS else 8 for word in prompt.split()]
        if not add_special_tokens:
            return {"input_ids": ids}
        used = len(ids) + 2
        return {"input_ids": [0, *ids, *[9] * (8 - used + 1)], "attention_mask": [1] * used + [0] * (8 - used)}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["<s>" if i == 0 else "<e>" if i == 9 else f"{WORDS[i - 1]}</w>" for i in ids]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(WORDS[i - 1] if 0 < i < 9 else "" for i in ids)


def prompt(**changed: Any) -> Prompt:
    return Prompt(Text("red circle and blue square", Tokenizer()), (1, 2, 3, 4, 5), **changed)


def maps(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_softmax_over_the_text_excludes_start_and_end():
    given = torch.zeros(2, 2, 4)
    given[..., 0], given[0, 0, 1] = 50.0, 0.02
    expected = math.exp(2.0) / (math.exp(2.0) + 1.0)
    torch.testing.assert_close(over_text(given, [1, 2])[:, 0, 0], torch.tensor([expected, 1.0 - expected]))
    with pytest.raises(ValueError, match="from 1 to 2"):
        over_text(given, [3])


def test_attend_and_excite_is_the_weakest_token():
    given, method = maps(), AttendAndExcite(tokens=("circle", 5))
    peaks = smoothed(over_text(given, [2, 5])).amax((1, 2))
    torch.testing.assert_close(method.loss(given, prompt()), 1.0 - peaks.min())
    assert method.loss(given, prompt()) > AttendAndExcite(tokens=(int(peaks.argmax()) * 3 + 2,)).loss(given, prompt())
    assert method.refine_at == (0, 10, 20) and method.alpha == 20.0 and method.step_range == (1.0, 0.5)
    assert method.is_reached(0.95, 0) and not method.is_reached(0.95001, 0)
    assert method.is_reached(0.19, 20) and not method.is_reached(0.21, 20)
    assert copy.deepcopy(method) == method and hash(method) == hash(copy.deepcopy(method))


def test_contrastive_loss_by_hand():
    cosines = torch.tensor([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    pull, first, second = math.exp(0.8 / 0.5), math.exp(0.2 / 0.5), math.exp(0.4 / 0.5)
    expected = -(math.log(pull / (pull + first)) + math.log(pull / (pull + second))) / 2
    assert contrastive(cosines, [0, 0, 1], 0.5).item() == pytest.approx(expected)
    assert contrastive(cosines, [0, 1, 2], 0.5) == 0 == contrastive(cosines, [0, 0, 0], 0.5)


def test_conform_groups_and_the_previous_step():
    method = CONFORM(groups=[("red", "circle"), ("blue", "square")])
    given, before = maps(), maps(1)
    features = smoothed(over_text(given, [1, 2, 4, 5])).flatten(1)
    cosines = torch.cosine_similarity(features[:, None], features[None], dim=-1)
    torch.testing.assert_close(method.loss(given, prompt()), contrastive(cosines, [0, 0, 1, 1], 0.5))
    features = torch.cat([features, smoothed(over_text(before, [1, 2, 4, 5])).flatten(1)])
    cosines = torch.cosine_similarity(features[:, None], features[None], dim=-1)
    expected = contrastive(cosines, [0, 0, 1, 1] * 2, 0.5)
    torch.testing.assert_close(method.loss(given, prompt(previous=before)), expected)
    assert method.refine_at == (0, 10, 20) and method.refine_iters == 20


def test_symmetric_divergence_by_hand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    expected = 0.5 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3) + 0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert symmetric_kl(p.log(), q.log()).item() == pytest.approx(expected)


def test_syngen_pairs_and_unrelated_words():
    given = maps()
    logs = (given[..., 1:6] / given[..., 1:6].sum((0, 1))).flatten(0, 1).T.log()  # one row per word

    def dist(i: int, j: int) -> torch.Tensor:
        return symmetric_kl(logs[i - 1], logs[j - 1])

    expected = dist(1, 2) - torch.stack([dist(w, u) for w in (1, 2) for u in (3, 4, 5)]).mean()
    torch.testing.assert_close(SynGen(pairs=[("red", "circle")]).loss(given, prompt()), expected)
    expected = expected + dist(4, 5) - torch.stack([dist(w, u) for w in (4, 5) for u in (1, 2, 3)]).mean()
    torch.testing.assert_close(SynGen(pairs=[("red", "circle"), (4, 5)]).loss(given, prompt()), expected)
    # Two modifiers of one noun do not count as unrelated to each other.
    expected = dist(1, 2) + dist(4, 2)
    expected = expected - torch.stack([dist(w, u) for m in (1, 4) for w in (m, 2) for u in (3, 5)]).sum() / 4
    torch.testing.assert_close(SynGen(pairs=[(1, 2), (4, 2)]).loss(given, prompt()), expected)
    assert SynGen(pairs=[(1, 2)]).step_range == (1.0, 1.0)


@pytest.mark.parametrize(
    "method",
    [
        AttendAndExcite(tokens=("circle", "square")),
        CONFORM(groups=[("red", "circle"), ("blue", "square")]),
        CONFORM(groups=[("red",), ("blue",)]),
        SynGen(pairs=[("red", "circle"), ("blue", "square")]),
    ],
    ids=lambda method: type(method).__name__,
)
def test_gradients_are_finite(method):
    given = maps().double().requires_grad_()
    previous = maps(1).double()
    assert torch.autograd.gradcheck(lambda maps: method.loss(maps, prompt(previous=previous)), given, atol=1e-4)
    loss = method.loss(given, prompt())
    assert torch.autograd.grad(loss, given)[0].isfinite().all()


def test_a_callable_becomes_a_guidance():
    method = as_guidance(lambda maps, prompt: maps.sum())
    assert isinstance(method, Custom) and method.loss(torch.ones(2, 2, 2), prompt()) == 8
    assert as_guidance(method) is method and not method.needs_text_attention
    assert Custom(function=len, text_attention=True).needs_text_attention


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: AttendAndExcite(tokens=None), ValueError, "tokens: expected .*got None"),
        (lambda: AttendAndExcite(tokens=()), ValueError, "tokens"),
        (lambda: AttendAndExcite(tokens=("a",), thresholds=0.5), TypeError, "thresholds: expected"),
        (lambda: AttendAndExcite(tokens=("a",), refine_at=(1,)), ValueError, r"refine_at: expected .*thresholds="),
        (lambda: CONFORM(groups=["red", "circle"]), ValueError, "groups: expected"),
        (lambda: CONFORM(groups=[]), TypeError, "groups: expected"),
        (lambda: CONFORM(groups=[("a",)], temperature=0.0), ValueError, "temperature: expected"),
        (lambda: SynGen(pairs=[("a", "b", "c")]), ValueError, "pairs: expected"),
        (lambda: SynGen(pairs=[("a",)]), ValueError, "pairs: expected"),
        (lambda: Custom(function=3), TypeError, "function: expected"),
        (lambda: as_guidance("tsam"), TypeError, "guidance: expected .*got 'tsam'"),
        (lambda: AttendAndExcite(tokens=("green",)).loss(maps(), prompt()), ValueError, "'green' is not in the prompt"),
    ],
)
def test_refusals(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_parser_is_optional(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ImportError, match="pairs: expected"):
        SynGen().loss(maps(), prompt())
