"""Similarities from the embeddings of a small CLIP, by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from entropy_attn.evaluation.metrics.clip import Similarities, read_templates
from entropy_attn.pipelines.clip import Clip

PROMPTS = ["a b and c d", "e f", "g"]


@pytest.fixture
def clip(tiny_clip):
    return Clip(tiny_clip)


def test_full_prompt_similarity_is_a_cosine(clip, drawn):
    image, text = clip.images(drawn), clip.texts(PROMPTS)
    found = Similarities(clip).full_prompt(image, PROMPTS)
    assert found == pytest.approx((image * text).sum(-1).tolist(), abs=1e-5)
    assert len(set(found)) == 3


def test_minimum_object_similarity_is_the_least_of_the_phrases(clip, drawn):
    phrases = ["a b", "c d", "g"]
    image = clip.images(drawn)
    cosines = (image @ clip.texts(phrases).mT).tolist()
    objects = [phrases, phrases[:2], phrases[2:]]
    expected = [min(cosines[0]), min(cosines[1][:2]), cosines[2][2]]
    assert Similarities(clip).minimum_object(image, objects) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="zip"):
        Similarities(clip).minimum_object(image, objects[:2])


def test_templates_average_unit_vectors(clip, drawn):
    image, text = clip.images(drawn[:1]), clip.texts(["p o e f", "e f s"])
    mean = text.mean(0) / text.mean(0).norm()
    found = Similarities(clip, ("p o {}", "{} s")).full_prompt(image, ["e f"])
    assert found == pytest.approx([float(image[0] @ mean)], abs=1e-5)


def test_text_to_text_similarity_is_of_the_caption_alone_with_the_prompt_in_templates(clip):
    texts = clip.texts(["r", "p o g"])
    found = Similarities(clip, ("p o {}",)).text_to_text(["r", "p o g"], ["g", "g"])
    assert found == pytest.approx([float(texts[0] @ texts[1]), 1.0], abs=1e-5)


def test_templates_from_a_file(tmp_path, clip):
    path = tmp_path / "templates.txt"
    path.write_text("a photo of {}.\n\n{} on a shelf\n")
    assert read_templates(path) == ("a photo of {}.", "{} on a shelf")
    path.write_text("a photo of {}.\na photo\n")
    with pytest.raises(ValueError, match=r"line 2: expected a template with one '{}', got 'a photo'"):
        read_templates(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"templates: expected texts that each have '{}' once"):
        read_templates(path)
    with pytest.raises(ValueError, match="templates: expected texts"):
        Similarities(clip, "a {}")
