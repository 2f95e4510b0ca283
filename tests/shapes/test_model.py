"""The shipped pipeline is small, loads with plain diffusers, and follows its captions."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from entropy_attn.shapes import MODEL_DIR, load_pipeline
from entropy_attn.shapes.checker import find_objects
from entropy_attn.shapes.scenes import COLOURS, KINDS, Kind, place, random_request, render, to_array


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


def test_at_most_16_mib_in_fp16():
    files = [path for path in MODEL_DIR.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16 * 2**20
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    weights = [load_file(path) for path in MODEL_DIR.rglob("*.safetensors")]
    assert len(weights) == 3
    assert {t.dtype for tensors in weights for t in tensors.values() if t.is_floating_point()} == {torch.float16}


def test_plain_diffusers_loads_it():
    assert isinstance(StableDiffusionPipeline.from_pretrained(MODEL_DIR), StableDiffusionPipeline)
    assert load_pipeline(dtype=torch.float16).unet.dtype == torch.float16


def test_every_word_is_one_token(pipe):
    for kind in KINDS:
        ids = pipe.tokenizer(str(kind)).input_ids
        assert pipe.tokenizer.convert_ids_to_tokens(ids)[1:-1] == [f"{kind.colour}</w>", f"{kind.shape}</w>"]
    assert pipe.tokenizer.model_max_length == 77


def test_the_vae_keeps_every_object(pipe):
    rng = random.Random(3)
    for _ in range(10):
        placed = place(random_request(rng), (64, 64), rng)
        x = torch.from_numpy(to_array(render(placed, (64, 64))).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
        pixels = ((y[0].permute(1, 2, 0).clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
        assert sorted(f.kind for f in find_objects(pixels)) == sorted(o.kind for o in placed)


def test_it_follows_the_color_of_its_caption(pipe):
    """The weakest claim of the model card, on the easiest captions; the card has the complete evaluation."""
    kinds = [Kind(colour, "circle") for colour in COLOURS]
    images = pipe([f"a {kind}" for kind in kinds], num_inference_steps=15, guidance_scale=4.0, height=64, width=64,
                  generator=[torch.Generator().manual_seed(i) for i in range(len(kinds))]).images  # fmt: skip
    found = [{f.colour for f in find_objects(image)} for image in images]
    right = sum(kind.colour in colours for kind, colours in zip(kinds, found, strict=True))
    assert right >= 5
