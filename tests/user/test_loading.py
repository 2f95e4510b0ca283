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


def test_a_pipeline_without_a_unet(tmp_path):
    index = {"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is a FluxPipeline without unet"):
        load_pipeline(str(tmp_path))
