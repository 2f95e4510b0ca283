"""A guided pipeline on disk: plain diffusers can load it, and a loaded pipeline makes the same images."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

import entropy_attn as ea
from entropy_attn.guidance import TSAM
from tests.support.guided_pipes import draw, make_xl
from tests.support.tiny_models import make_text_pipe

FAMILIES = [
    (make_text_pipe, StableDiffusionPipeline, ea.TSAMStableDiffusionPipeline),
    (make_xl, StableDiffusionXLPipeline, ea.TSAMStableDiffusionXLPipeline),
]


@pytest.mark.parametrize("make, parent, guided", FAMILIES, ids=["sd", "sdxl"])
@pytest.mark.parametrize("how", ["class", "attach"])
def test_plain_diffusers_loads_a_saved_pipeline(make, parent, guided, how, tmp_path):
    pipe = make()
    expected = draw(pipe)
    if how == "class":
        saved = guided.from_pipe(pipe)
        saved.save_pretrained(tmp_path)
        assert type(saved) is guided and repr(saved).startswith(guided.__name__)
    else:
        with ea.guidance.attach(pipe, TSAM()):
            pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == parent.__name__
    for loader in (DiffusionPipeline, parent, guided):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is (guided if loader is guided else parent)
        loaded.set_progress_bar_config(disable=True)
        options = {"guidance": None} if loader is guided else {}
        assert torch.equal(draw(loaded, **options), expected)


def test_a_loaded_pipeline_is_guided_in_the_same_way(tmp_path):
    """Bit for bit, if its weights have the same alignment in memory.

    Weights that need no conversion stay in the mapped file, at unaligned addresses, for which torch sums in another
    order: the gradient differs in its last bits, and alpha makes this visible in the fourth digit of the latents.
    """
    pipe = ea.TSAMStableDiffusionPipeline.from_pipe(ea.shapes.load_pipeline())
    pipe.save_pretrained(tmp_path)
    loaded = ea.TSAMStableDiffusionPipeline.from_pretrained(tmp_path)
    images = []
    for each in (pipe, loaded):
        each.set_progress_bar_config(disable=True)
        images.append(draw(each, "a red circle and a blue square", steps=2, height=64, width=64))
    torch.testing.assert_close(*images, rtol=0.0, atol=1e-2)
    for part in (pipe, loaded):
        for parameter in part.unet.parameters():
            parameter.data = parameter.data.clone()
    again = [draw(each, "a red circle and a blue square", steps=2, height=64, width=64) for each in (pipe, loaded)]
    assert torch.equal(*again)


def test_the_embedded_model_loads_in_one_dtype_by_default():
    """transformers uses the dtype of the text encoder's configuration, diffusers uses float32."""
    pipe = ea.TSAMStableDiffusionPipeline.from_pretrained(ea.shapes.MODEL_DIR)
    assert pipe.text_encoder.dtype == pipe.unet.dtype == pipe.vae.dtype == torch.float32
    pipe.set_progress_bar_config(disable=True)
    found = draw(pipe, "a red circle", steps=2, height=64, width=64, guidance=None)
    assert torch.equal(found, draw(ea.shapes.load_pipeline(), "a red circle", steps=2, height=64, width=64))
