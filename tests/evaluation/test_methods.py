"""Guidances with the words of each prompt, and the oracle map of shapes, by hand."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from entropy_attn.evaluation.methods import METHODS, guidance_for, nouns, pairs, words_of_phrases, words_of_shapes
from entropy_attn.evaluation.oracle_map import OracleMap, layout
from entropy_attn.guidance import CONFORM, JEDI, TSAM, AttendAndExcite, Prompt, SynGen
from entropy_attn.prompts import JoinedText, Text, TextPart
from entropy_attn.shapes import load_pipeline
from entropy_attn.shapes.scenes import Kind

CAPTION = "a red circle and two blue squares"  # red 2, circle 3, blue 6, squares 7


@pytest.fixture(scope="module")
def tokenizer():
    return load_pipeline().tokenizer


@pytest.fixture
def prompt(tokenizer):
    text = Text(CAPTION, tokenizer)
    return Prompt(text, text.real)


@pytest.fixture
def maps(prompt):
    return torch.rand(6, 6, len(prompt.text), generator=torch.Generator().manual_seed(0))


def test_words_of_phrases_are_those_of_the_grammar(prompt):
    """The last word is the noun, and articles are no attributes."""
    known = words_of_phrases({CAPTION: ("a red circle", "blue squares")})
    assert known(prompt.text) == words_of_shapes(prompt.text) == [((2,), (3,)), ((6,), (7,))]
    assert nouns(known(prompt.text)) == [3, 7] and pairs(known(prompt.text)) == [(2, 3), (6, 7)]
    with pytest.raises(ValueError, match=r"'green' is not in the prompt 'a red circle and two blue squares'"):
        words_of_phrases({CAPTION: ("a green circle",)})(prompt.text)


def test_every_method_gets_the_words_of_its_prompt(prompt, maps):
    by_hand = {
        "attend-and-excite": AttendAndExcite(tokens=(3, 7), thresholds={}),
        "conform": CONFORM(groups=[(2, 3), (6, 7)]),
        "jedi": JEDI(groups=[(2, 3), (6, 7)]),
        "syngen": SynGen(pairs=[(2, 3), (6, 7)]),
    }
    for name, expected in by_hand.items():
        made = guidance_for(METHODS[name](alpha=3.0, steps=(0, 2)), words_of_shapes)
        torch.testing.assert_close(made.loss(maps, prompt), expected.loss(maps, prompt))
        assert (made.alpha, made.steps, made.refine_at) == (3.0, (0, 2), expected.refine_at)
        assert made.step_range == expected.step_range
        slope = torch.tensor([[-2.0, 0.5]])
        assert torch.equal(made.direction(slope, [prompt], 0), expected.direction(slope, [prompt], 0))
        if name != "syngen":
            with pytest.raises(ValueError, match=f"guidance: {name} needs the objects of every prompt"):
                guidance_for(METHODS[name](), None)
    tsam = TSAM()
    assert guidance_for(tsam, None) is tsam


def test_without_words_syngen_parses_the_prompts(monkeypatch):
    monkeypatch.setattr("entropy_attn.evaluation.methods.parsed_pairs", lambda prompt: (("red", "circle"),))
    made = guidance_for(METHODS["syngen"](alpha=3.0), None)
    assert isinstance(made, SynGen) and made.pairs is None and made.alpha == 3.0

    def missing(prompt):
        raise ImportError("pairs: expected [(modifier, noun)], because spaCy is not installed")

    monkeypatch.setattr("entropy_attn.evaluation.methods.parsed_pairs", missing)
    with pytest.raises(ImportError, match="spaCy"):
        guidance_for(METHODS["syngen"](), None)


def test_a_prompt_without_pairs_is_not_guided(prompt, maps):
    plain = words_of_phrases({CAPTION: ("circle", "squares")})
    leaf = maps.requires_grad_()
    loss = guidance_for(METHODS["syngen"](), plain).loss(leaf, prompt)
    assert loss.item() == 0 and not torch.autograd.grad(loss, leaf)[0].any()


def test_the_layout_fits_the_caption():
    found = layout("a red circle above a blue square", (16, 16))
    assert list(found) == [Kind("red", "circle"), Kind("blue", "square")]
    rows = {kind: region.nonzero()[:, 0].float() for kind, region in found.items()}
    assert rows[Kind("red", "circle")].mean() < rows[Kind("blue", "square")].mean()
    assert not torch.stack(list(found.values())).all(0).any()  # they do not overlap
    assert all(9 <= region.sum() <= 49 for region in found.values())  # 4.5 to 6 tokens a side
    again = layout("a red circle above a blue square", (16, 16))
    assert all(torch.equal(again[kind], region) for kind, region in found.items())
    assert layout("two red circles", (16, 16))[Kind("red", "circle")].sum() > 24  # a region for both


def test_the_oracles_loss_is_the_share_outside(prompt):
    regions = layout(CAPTION, (16, 16))
    maps = torch.zeros(16, 16, len(prompt.text))
    for position, kind in ((2, "red circle"), (3, "red circle"), (6, "blue square"), (7, "blue square")):
        region = next(each for name, each in regions.items() if str(name) == kind)
        maps[..., position] = region.float()
    assert OracleMap().loss(maps, prompt).item() == pytest.approx(0.0, abs=1e-6)
    maps[..., 7] = 1.0  # everywhere
    inside = regions[Kind("blue", "square")].float().mean().item()
    assert OracleMap().loss(maps, prompt).item() == pytest.approx((1 - inside) / 4, abs=1e-6)


def test_the_oracle_map_is_for_the_text_of_one_encoder(tokenizer, maps):
    parts = [TextPart(tokenizer, 77), TextPart(tokenizer, None)]
    text = JoinedText(CAPTION, parts, 154)
    with pytest.raises(ValueError, match="expected the text of one encoder"):
        OracleMap().loss(maps, Prompt(text, text.real, parts=text.ranges))
