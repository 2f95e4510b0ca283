"""Model names, and the picture sizes that a model takes."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from entropy_attn.pipelines import check_size, load_pipeline, sample, size_multiple, train_size
from entropy_attn.scale import Fixed


def test_sizes_of_the_tiny_pipeline(tiny_pipe):
    assert size_multiple(tiny_pipe) == 8
    assert train_size(tiny_pipe) == (32, 32)
    check_size(tiny_pipe, (16, 40))


@pytest.mark.parametrize(("size", "near"), [((30, 32), "32x32"), ((32, 3), "32x8"), ((0, 8), "8x8")])
def test_a_size_that_does_not_fit_is_refused_with_one_that_does(tiny_pipe, size, near):
    with pytest.raises(ValueError, match=f"size {size[0]}x{size[1]}: both sides must be multiples of 8 px.*{near}"):
        check_size(tiny_pipe, size)


def test_every_size_that_passes_the_check_can_be_sampled(tiny_pipe):
    (picture,) = sample(tiny_pipe, ["a"], size=(8, 24), scale=Fixed(), seed=0, steps=1)
    assert picture.size == (24, 8)


def test_a_picture_does_not_depend_on_its_batch(tiny_pipe):
    import numpy as np

    options = {"size": (16, 16), "scale": Fixed(), "seed": 5, "steps": 2}
    alone = sample(tiny_pipe, ["a red circle"], **options)[0]
    among = sample(tiny_pipe, ["two blue squares", "a red circle"], **options)[1]
    np.testing.assert_allclose(np.asarray(alone, int), np.asarray(among, int), atol=1)


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(ValueError, match=r"folder without model_index\.json"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "what is this"])
def test_a_name_that_cannot_be_a_hub_id(name):
    with pytest.raises(ValueError, match="unknown model"):
        load_pipeline(name)


VAE = ["diffusers", "AutoencoderKL"]


@pytest.mark.parametrize(
    ("kind", "parts", "reason"),
    [
        (
            "FluxPipeline",
            {"vae": VAE, "transformer": ["diffusers", "ConsisIDTransformer3DModel"]},
            "denoiser is none of",
        ),
        ("FluxPipeline", {"vae": VAE}, "denoiser is none of"),
        ("FluxPipeline", {"transformer": ["diffusers", "FluxTransformer2DModel"]}, "has no VAE"),
        (
            "WanPipeline",
            {
                "vae": VAE,
                "transformer": ["diffusers", "WanTransformer3DModel"],
                "transformer_2": ["diffusers", "WanTransformer3DModel"],
            },
            "two denoisers",
        ),
        ("WanPipeline", {"vae": VAE, "transformer": ["diffusers", "WanTransformer3DModel"]}, "makes videos"),
        ("DiTPipeline", {"vae": VAE, "transformer": ["diffusers", "DiTTransformer2DModel"]}, "takes no prompt"),
    ],
)
def test_a_pipeline_that_cannot_be_profiled(tmp_path, kind, parts, reason):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, **parts}))
    with pytest.raises(ValueError, match=rf"is a {kind}, wh.*{reason}.*from text to pictures is needed"):
        load_pipeline(str(tmp_path))


def test_sizes_of_transformers():
    from ..routing.test_joint_maps import flux, sd3

    pipe = sd3()  # two pixels a latent cell, two cells a token, cells of the training size in its configuration
    side = pipe.transformer.config.sample_size
    assert (size_multiple(pipe), train_size(pipe)) == (8, (side * 2, side * 2))
    pipe = flux()  # without a VAE eight pixels are a cell, and the pipeline packs two cells
    assert (size_multiple(pipe), train_size(pipe)) == (16, (1024, 1024))
