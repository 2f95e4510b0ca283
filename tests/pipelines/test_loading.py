"""Names of models, and the image sizes that a model accepts."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("diffusers")

from entropy_attn.pipelines import check_size, load_pipeline, sample, size_multiple, train_size
from entropy_attn.pipelines.outline import outline_pipeline
from entropy_attn.scale import Fixed


def test_sizes_of_the_tiny_pipeline(tiny_pipe):
    assert size_multiple(tiny_pipe) == 8
    assert train_size(tiny_pipe) == (32, 32)
    check_size(tiny_pipe, (16, 40))


@pytest.mark.parametrize(("size", "near"), [((30, 32), "32x32"), ((32, 3), "32x8"), ((0, 8), "8x8")])
def test_an_invalid_size_is_refused_with_a_valid_one(tiny_pipe, size, near):
    with pytest.raises(ValueError, match=f"size {size[0]}x{size[1]}: both sides must be multiples of 8 px.*{near}"):
        check_size(tiny_pipe, size)


def test_every_size_that_passes_the_check_can_be_sampled(tiny_pipe):
    (image,) = sample(tiny_pipe, ["a"], size=(8, 24), scale=Fixed(), seed=0, steps=1)
    assert image.size == (24, 8)


def test_an_image_does_not_depend_on_its_batch(tiny_pipe):
    import numpy as np

    options = {"size": (16, 16), "scale": Fixed(), "seed": 5, "steps": 2}
    alone = sample(tiny_pipe, ["a red circle"], **options)[0]
    among = sample(tiny_pipe, ["two blue squares", "a red circle"], **options)[1]
    np.testing.assert_allclose(np.asarray(alone, int), np.asarray(among, int), atol=1)


def test_a_folder_without_an_index(tmp_path):
    with pytest.raises(ValueError, match=r"a diffusers folder with model_index\.json, got"):
        load_pipeline(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "what is this"])
def test_a_name_that_cannot_be_a_hub_id(name):
    with pytest.raises(ValueError, match="model: expected 'shapes'"):
        load_pipeline(name)


VAE = ["diffusers", "AutoencoderKL"]


@pytest.mark.parametrize(
    ("kind", "parts", "reason"),
    [
        (
            "FluxPipeline",
            {"vae": VAE, "transformer": ["diffusers", "ConsisIDTransformer3DModel"]},
            "denoiser is not one of",
        ),
        ("FluxPipeline", {"vae": VAE}, "denoiser is not one of"),
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
        ("WanPipeline", {"vae": VAE, "transformer": ["diffusers", "WanTransformer3DModel"]}, "generates videos"),
        ("DiTPipeline", {"vae": VAE, "transformer": ["diffusers", "DiTTransformer2DModel"]}, "takes no prompt"),
    ],
)
def test_a_pipeline_that_cannot_be_profiled(tmp_path, kind, parts, reason):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind, **parts}))
    with pytest.raises(ValueError, match=rf"expected a text-to-image pipeline, got .*a {kind}, wh.*{reason}"):
        load_pipeline(str(tmp_path))


def test_sizes_of_transformers():
    from tests.recorders.test_joint_maps import flux, sd3

    pipe = sd3()  # 2 pixels per latent cell, 2 cells per token; its configuration has the training size in cells
    side = pipe.transformer.config.sample_size
    assert (size_multiple(pipe), train_size(pipe)) == (8, (side * 2, side * 2))
    pipe = flux()  # without a VAE, a cell has 8 pixels, and the pipeline packs 2 cells
    assert (size_multiple(pipe), train_size(pipe)) == (16, (1024, 1024))


def saved(pipe, folder, dtype=None):
    (pipe if dtype is None else pipe.to(dtype)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [
        ("float32", "cpu", "float32"),
        ("float16", "cpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float32", "cuda", "float16"),
        ("float16", "cuda", "float16"),
        ("bfloat16", "cuda", "bfloat16"),
    ],
)
def test_the_dtype_is_that_of_the_checkpoint(tmp_path, tiny_model, stored, device, expected):
    import torch

    from entropy_attn.pipelines.checkpoint import find_checkpoint
    from entropy_attn.pipelines.loading import published_dtype

    model = saved(load_pipeline(str(tiny_model)), tmp_path, getattr(torch, stored))
    checkpoint = find_checkpoint(model)
    assert checkpoint.stored_dtype() == getattr(torch, stored)
    assert published_dtype(checkpoint, device) == getattr(torch, expected)


def test_a_transformer_in_float32_is_not_made_float16(tmp_path):
    import torch

    from entropy_attn.pipelines.checkpoint import find_checkpoint
    from entropy_attn.pipelines.loading import published_dtype
    from tests.recorders.test_joint_maps import sd3

    checkpoint = find_checkpoint(saved(sd3(), tmp_path))
    assert (published_dtype(checkpoint, "cpu"), published_dtype(checkpoint, "cuda")) == (torch.float32, torch.bfloat16)


def test_sd3_without_t5(tmp_path):
    from tests.recorders.test_joint_maps import sd3

    pipe = sd3()
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.vae.register_to_config(shift_factor=0.0)
    model = saved(pipe, tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["text_encoder_3"] == [None, None]
    assert load_pipeline(model).text_encoder_3 is None


def test_variant_scheduler_and_tiling(tmp_path, tiny_model):
    pipe = load_pipeline(str(tiny_model))
    pipe.save_pretrained(tmp_path, variant="fp16")
    loaded = load_pipeline(str(tmp_path), variant="fp16", scheduler="EulerDiscreteScheduler", vae_tiling=True)
    assert type(loaded.scheduler).__name__ == "EulerDiscreteScheduler" and loaded.vae.use_tiling
    assert loaded.scheduler.config.num_train_timesteps == pipe.scheduler.config.num_train_timesteps


def test_a_single_file_is_loaded_by_the_pipeline_of_its_configuration(tmp_path, tiny_model, monkeypatch):
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import save_file

    pipe, asked = load_pipeline(str(tiny_model)), []
    file = tmp_path / "one.safetensors"
    save_file({"weight": next(pipe.unet.parameters()).detach().bfloat16().contiguous()}, file)

    def from_single_file(cls, source, **given):
        asked.append((source, given))
        return pipe

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", classmethod(from_single_file))
    assert load_pipeline(str(file), config=str(tiny_model), dtype=None) is pipe
    ((source, given),) = asked
    assert source == str(file) and given.pop("config") == str(tiny_model)
    assert [str(value) for value in given.values()] == ["torch.bfloat16"]
    (tmp_path / "bad.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match=r"expected a \.safetensors file"):
        load_pipeline(str(tmp_path / "bad.safetensors"))


def test_the_configuration_of_a_single_file_is_found_from_its_weights():
    from entropy_attn.integrations.diffusers.private import config_of_single_file

    class Part:
        def get_shape(self):
            return [1280, 1280]

    name = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    assert "xl" in config_of_single_file({name: Part()}) and "xl-base" in config_of_single_file({name: Part()})


def test_errors_distinguish_a_missing_network_from_a_missing_repository(monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    def fails(error):
        def download(*_, **__):
            raise error

        return download

    reply = type("Reply", (), {"headers": {}, "request": None, "status_code": 404, "text": ""})()
    gone = errors.LocalEntryNotFoundError("cannot find the file on the Hub or the disk")
    gone.__cause__ = ConnectionError("refused")
    for error, words in (
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set"),
        (errors.RepositoryNotFoundError("404", response=reply), "the Hub has no repository some/one"),
        (errors.GatedRepoError("403", response=reply), "requires you to accept the terms"),
        (errors.RevisionNotFoundError("404", response=reply), "has no such revision"),
        (gone, "could not be reached"),
    ):
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails(error))
        with pytest.raises(ValueError, match=words):
            load_pipeline("some/one")
        with pytest.raises(ValueError, match=words):
            outline_pipeline("some/one")


def test_the_minimum_memory_of_an_image(tiny_pipe, monkeypatch):
    from entropy_attn.pipelines import memory

    needs = memory.memory_needed(tiny_pipe, (64, 32), pictures=3)
    assert needs.latents == 3 * 32 * 16 * 4 * 4
    assert needs.denoiser == 2 * 3 * 32 * 16 * 16 * 4  # 16 channels of the first block, in and out
    assert needs.decode == 64 * 32 * (2 * 8 * 4 + 3 * 4)  # 8 channels of the VAE, and the image
    assert needs.weights == sum(
        p.numel() * 4 for part in (tiny_pipe.unet, tiny_pipe.vae, tiny_pipe.text_encoder) for p in part.parameters()
    )
    monkeypatch.setattr(memory, "device_memory", lambda _: needs.peak)
    check_size(tiny_pipe, (64, 32), 3)
    monkeypatch.setattr(memory, "device_memory", lambda _: needs.peak - 1)
    with pytest.raises(ValueError, match=r"size 64x32 needs at least .*; 3 at once.*: use .*fewer images at once"):
        check_size(tiny_pipe, (64, 32), 3)


def test_memory_of_every_model():
    from entropy_attn.pipelines.memory import memory_needed
    from tests.support.tiny_pipelines import PIPELINES

    for name in ("sd3", "flux", "pixart", "cogvideox", "ddpm"):
        needs = memory_needed(PIPELINES[name].make(), (64, 64))
        assert needs.denoiser > 0 and needs.peak < 2**30, name
