"""Embeddings by a tiny CLIP against its forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from entropy_attn.pipelines.clip import Clip

TEXTS = ["a b", "a", "c d e f"]


@pytest.fixture(scope="module")
def images():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (32, 32))]


def test_embeddings_are_those_of_the_model(tiny_clip, images):
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(tiny_clip), CLIPProcessor.from_pretrained(tiny_clip)
    # One text at a time, without padding; each image by itself
    texts = [model(**processor(text=[t], images=images[:1], return_tensors="pt")).text_embeds[0] for t in TEXTS]
    pixels = [model(**processor(text=["a"], images=[i], return_tensors="pt")).image_embeds[0] for i in images]
    clip = Clip(tiny_clip)
    torch.testing.assert_close(clip.texts(TEXTS), torch.stack(texts))
    torch.testing.assert_close(clip.images(images), torch.stack(pixels))
    torch.testing.assert_close(clip.images(images).norm(dim=-1), torch.ones(2))


def test_long_texts_are_cut_and_counted(tiny_clip):
    clip, long = Clip(tiny_clip), "a b c d e f g h i j k l m n o p q r"
    assert clip.length == 16 and clip.cut([long, *TEXTS]) == 1
    assert clip.texts([long]).shape == (1, 8) and not clip.cut(["a b c d e f g h i j k l m n"])


def test_refusals(tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"clip: expected a folder of a CLIP model with config\.json, got"):
        Clip(tmp_path)
    with pytest.raises(ValueError, match="clip: cannot load a model and its processor from"):
        Clip(tiny_model / "unet")
