"""Answers and embeddings against transformers' forward passes; captions against its beam search."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from entropy_attn.pipelines.captioner import Captioner
from entropy_attn.pipelines.vqa import VQA, SentenceEncoder


def test_vilt_answers_with_its_likeliest_label(networks, drawn):
    folder = networks["vilt"]
    question = "what color is the circle?"
    model = transformers.ViltForQuestionAnswering.from_pretrained(folder).eval()
    inputs = dict(transformers.AutoTokenizer.from_pretrained(folder)(question, return_tensors="pt"))
    inputs |= dict(transformers.AutoImageProcessor.from_pretrained(folder)(images=drawn[:1], return_tensors="pt"))
    with torch.no_grad():
        label = int(model(**inputs).logits[0].argmax())
    assert VQA(folder).answer(drawn[0], question) == model.config.id2label[label]
    VQA(folder).answer(drawn[0], "what " * 100)  # cut at the network's length


def test_blip_answers_in_words(networks, drawn):
    folder = networks["blip"]
    question = "is there a circle?"
    model = transformers.BlipForQuestionAnswering.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=drawn[:1], return_tensors="pt")
    tokens = tokenizer(question, return_tensors="pt")
    ids = model.generate(
        input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels["pixel_values"],
        max_length=50,
    )  # fmt: skip
    assert VQA(folder).answer(drawn[0], question) == tokenizer.decode(ids[0], skip_special_tokens=True).strip()


def test_other_networks_are_refused(tiny_clip):
    with pytest.raises(ValueError, match="vqa: expected a blip or vilt network, got clip in "):
        VQA(tiny_clip)


def test_answers_go_to_the_closest_choice_as_in_tifa(networks):
    """The mean of the last hidden states over the tokens, without padding, as unit vectors."""
    folder, texts = networks["encoder"], ["dark blue", "red", "is the circle blue or red ?"]
    model = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    alone = []
    for text in texts:  # one by one there is no padding
        with torch.no_grad():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        alone.append(mean / mean.norm())
    encoder = SentenceEncoder(folder)
    torch.testing.assert_close(encoder.embed(texts), torch.stack(alone), atol=1e-5, rtol=0)
    nearer = max(texts[1:], key=lambda text: float(alone[0] @ alone[texts.index(text)]))
    assert encoder.closest(texts[0], texts[1:]) == nearer


def test_captions_are_transformers_beam_search(networks, drawn):
    folder = networks["captioner"]
    captioner = Captioner(folder)
    found = captioner.captions(drawn)
    model = transformers.BlipForConditionalGeneration.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=drawn[:1], return_tensors="pt")
    ids = model.generate(pixel_values=pixels["pixel_values"], num_beams=3, min_length=10, max_length=30)
    expected = transformers.AutoTokenizer.from_pretrained(folder).decode(ids[0], skip_special_tokens=True)
    assert found[0] == expected.strip() and len(found) == 3
    assert captioner.captions(drawn) == found


def test_another_network_is_refused_by_name(tiny_clip, tmp_path):
    with pytest.raises(ValueError, match=r"captioner: expected a blip network, got clip in "):
        Captioner(tiny_clip)
    with pytest.raises(ValueError, match=r"captioner: expected a folder with config.json"):
        Captioner(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ValueError, match=r"captioner: expected the files of a blip network in "):
        Captioner(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"captioner: expected a model_type in "):
        Captioner(tmp_path)
