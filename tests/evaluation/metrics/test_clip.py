"""CLIP similarities and captions against transformers' forward passes and numbers by hand."""

from __future__ import annotations

import pytest
import torch
import transformers

from entropy_attn.evaluation.metrics.clip import CLIP, Captioner, read_templates

PROMPTS = ["a red circle and a blue square", "two green triangles", "a circle"]


def by_forward(folder, images, texts) -> tuple[torch.Tensor, torch.Tensor]:
    """The embeddings that a whole `CLIPModel` returns, which are unit vectors."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=32, return_tensors="pt"
    )
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    with torch.no_grad():
        found = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels["pixel_values"]
        )
    return found.image_embeds, found.text_embeds


def test_full_prompt_similarity_is_the_cosine_of_the_whole_model(networks, images):
    clip = CLIP(networks["clip"])
    image, text = by_forward(networks["clip"], images, PROMPTS)
    found = clip.full_prompt(clip.images(images), PROMPTS)
    assert found == pytest.approx((image * text).sum(-1).tolist(), abs=1e-5)
    assert len(set(found)) == 3


def test_minimum_object_similarity_is_the_least_of_the_phrases(networks, images):
    clip = CLIP(networks["clip"])
    phrases = ["a red circle", "a blue square", "a circle"]
    image, text = by_forward(networks["clip"], images, phrases)
    cosines = (image @ text.mT).tolist()
    objects = [phrases, phrases[:2], phrases[2:]]
    expected = [min(cosines[0]), min(cosines[1][:2]), cosines[2][2]]
    assert clip.minimum_object(clip.images(images), objects) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError):
        clip.minimum_object(clip.images(images), objects[:2])


def test_templates_average_unit_vectors(networks, images):
    templates = ("a photo of {}", "{}, is it?")
    image, text = by_forward(networks["clip"], images[:1], [t.format("two circles") for t in templates])
    mean = text.mean(0) / text.mean(0).norm()
    clip = CLIP(networks["clip"], templates)
    found = clip.full_prompt(clip.images(images[:1]), ["two circles"])
    assert found == pytest.approx([float(image[0] @ mean)], abs=1e-5)


def test_text_to_text_similarity_is_of_the_caption_alone_with_the_prompt_in_templates(networks, images):
    clip = CLIP(networks["clip"], ("a photo of {}",))
    texts = ["red square", "a photo of a red circle"]
    _, text = by_forward(networks["clip"], images[:1], texts)
    found = clip.text_to_text(["red square"], ["a red circle"])
    assert found == pytest.approx([float(text[0] @ text[1])], abs=1e-5)
    assert clip.text_to_text([texts[1]], ["a red circle"]) == pytest.approx([1.0], abs=1e-6)


def test_long_texts_are_cut(networks):
    clip = CLIP(networks["clip"])
    assert clip.texts(["circle " * 100]).shape == (1, 8)


def test_captions_are_transformers_beam_search(networks, images):
    folder = networks["captioner"]
    captioner = Captioner(folder)
    found = captioner.captions(images)
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=images[:1], return_tensors="pt")
    ids = model.generate(pixel_values=pixels["pixel_values"], num_beams=3, min_length=10, max_length=30)
    expected = transformers.AutoTokenizer.from_pretrained(folder).decode(ids[0], skip_special_tokens=True)
    assert found[0] == expected.strip() and len(found) == 3
    assert captioner.captions(images) == found


def test_another_network_is_refused_by_name(networks, tmp_path):
    with pytest.raises(ValueError, match=r"clip: expected a clip network, got blip in "):
        CLIP(networks["captioner"])
    with pytest.raises(ValueError, match=r"captioner: expected a blip network, got clip in "):
        Captioner(networks["clip"])
    with pytest.raises(ValueError, match=r"clip: expected a folder with config.json"):
        CLIP(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match=r"clip: expected the files of a clip network in "):
        CLIP(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"clip: expected a model_type in "):
        CLIP(tmp_path)


def test_templates_from_a_file(tmp_path, networks):
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
        CLIP(networks["clip"], "a {}")
