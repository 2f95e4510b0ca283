"""Which models are embedded, by which names they are loaded, and that a second one is taken wherever the first is."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("diffusers")

import entropy_attn as ea
from entropy_attn import shapes
from entropy_attn.pipelines import load_pipeline, size_multiple, train_size
from entropy_attn.pipelines.outline import outline_pipeline
from entropy_attn.shapes.names import embedded, embedded_names


@pytest.fixture
def both(shapes_transformer, monkeypatch):
    """The state of the package once the weights are there."""
    monkeypatch.setitem(shapes.MODELS, "transformer", shapes_transformer)


def test_a_model_has_a_name_when_its_files_are_there(tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model").mkdir()
    assert shapes._found(tmp_path) == {}
    (tmp_path / "model" / "model_index.json").touch()
    assert shapes._found(tmp_path) == {"unet": tmp_path / "model"}
    (tmp_path / "transformer" / "model_index.json").touch()
    assert shapes._found(tmp_path) == {"unet": tmp_path / "model", "transformer": tmp_path / "transformer"}
    assert shapes.DEFAULT in shapes.MODELS and shapes.MODELS["unet"] == shapes.MODEL_DIR


def test_the_default_is_one_constant():
    assert type(shapes.load_pipeline()) is type(shapes.load_pipeline(shapes.DEFAULT))
    assert embedded("shapes") == shapes.DEFAULT


def test_a_model_that_is_not_there_has_no_name(monkeypatch):
    monkeypatch.delitem(shapes.MODELS, "transformer", raising=False)
    assert embedded_names() == ["shapes", "shapes:unet"]
    with pytest.raises(ValueError, match="which: expected one of 'unet', got 'transformer'"):
        shapes.load_pipeline("transformer")
    for load in (load_pipeline, outline_pipeline):
        with pytest.raises(ValueError, match="model: expected one of shapes, shapes:unet, got 'shapes:transformer'"):
            load("shapes:transformer")


@pytest.mark.usefixtures("both")
def test_the_second_model_by_its_name():
    assert embedded_names() == ["shapes", "shapes:unet", "shapes:transformer"]
    pipe = shapes.load_pipeline("transformer")
    assert type(pipe).__name__ == "Lumina2Pipeline" and pipe.transformer.dtype == torch.float32
    assert shapes.load_pipeline("transformer", dtype=torch.float16).transformer.dtype == torch.float16
    assert type(load_pipeline("shapes:transformer")).__name__ == "Lumina2Pipeline"
    assert type(load_pipeline("shapes:unet")).__name__ == "StableDiffusionPipeline"
    assert type(outline_pipeline("shapes:transformer")).__name__ == "Lumina2Pipeline"
    assert train_size(pipe) == (64, 64)


@pytest.mark.parametrize("model", ["./shapes", "shapes/transformer", "transformer", "myshapes:unet", "shape"])
def test_other_names_are_not_embedded_models(model):
    assert embedded(model) is None


@pytest.mark.parametrize("model", ["shapes:", "shapes:other", "shapes:unet:1", "shapes: unet"])
def test_a_name_after_the_colon_is_one_of_them(model):
    with pytest.raises(ValueError, match="model: expected one of shapes, shapes:unet"):
        embedded(model)


@pytest.mark.usefixtures("both")
def test_the_sizes_are_those_that_the_pipeline_takes():
    """A latent of 8 pixels is a token, but the pipeline of Lumina 2 takes multiples of two of them."""
    pipe = shapes.load_pipeline("transformer")
    assert size_multiple(pipe) == 16
    options = {"num_inference_steps": 1, "output_type": "latent"}
    with pytest.raises(ValueError, match="divisible by 16"):
        pipe("a red circle", height=72, width=64, **options)
    assert pipe("a red circle", height=80, width=64, **options).images.shape[-2:] == (10, 8)


@pytest.mark.usefixtures("both")
def test_scale_and_entropy_in_the_second_model():
    """T is the 64 image tokens of the training size, the words of the caption apart."""
    pipe, recorder = shapes.load_pipeline("transformer"), ea.EntropyRecorder()
    with ea.apply(pipe, scale=ea.scale.LogN(), record=recorder):
        pipe("a red circle", height=128, width=64, num_inference_steps=1, guidance_scale=4.0, output_type="latent")
    rows = recorder.to_dataframe()
    joint = rows[rows["layer"] == "layers.0.attn"]
    # The start token and three words; the second pass has the start token alone.
    assert dict(joint.groupby("branch")["seqlen_k"].first()) == {"cond": 128 + 4, "uncond": 128 + 1}
    scale = math.sqrt(math.log(128) / math.log(64) / 32)
    assert joint["scale"].tolist() == pytest.approx([scale] * len(joint))
    words = rows[rows["layer"] == "context_refiner.0.attn"]  # text that attends to itself has no N to make up for
    assert words["scale"].tolist() == pytest.approx([32**-0.5] * len(words)) and len(words)
