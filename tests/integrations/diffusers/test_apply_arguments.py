"""The arguments of `apply`: the training size, and errors that name the argument."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from entropy_attn.integrations.diffusers import apply
from entropy_attn.recorders.entropy import EntropyRecorder
from entropy_attn.scale import Fixed, LogN
from tests.support.footprint import footprint
from tests.support.tiny_models import Spy, denoise, make_pipe, make_unet, sample

DOWN = "down_blocks.0.attentions.0.transformer_blocks.0"
MID = "mid_block.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("train_size", "expected"),
    [(None, 256), (32, 256), (64, 1024), ((32, 64), 512)],
    ids=["config", "32", "64", "32x64"],
)
def test_train_size_is_in_pixels_for_a_pipeline(train_size, expected: int):
    pipe, spy = make_pipe(), Spy()
    with apply(pipe, scale=spy, train_size=train_size):
        sample(pipe, 48, 48, steps=1)
    assert max(info.train_tokens for info in spy.calls) == expected


def test_train_size_is_in_latent_cells_for_a_denoiser(unet):
    spy = Spy()
    with apply(unet, scale=spy, train_size=32):
        denoise(unet)
    assert max(info.train_tokens for info in spy.calls) == 1024


def test_sample_size_may_be_a_pair_or_missing():
    spy = Spy()
    unet = make_unet(sample_size=[16, 32])
    with apply(unet, scale=spy):
        denoise(unet)
    assert max(info.train_tokens for info in spy.calls) == 512
    unet = make_unet(sample_size=None)
    with pytest.raises(ValueError, match="train_size"):
        apply(unet)
    with apply(unet, train_size=16), apply(make_unet(sample_size=None), scale=LogN(train_tokens=64)):
        denoise(unet)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scale": 0.1}, TypeError, r"scale: .*got 0\.1.*Fixed"),
        ({"record": []}, TypeError, r"record: .*got \[\]"),
        ({"layers": 3}, TypeError, "layers: .*got 3"),
        ({"layers": ""}, TypeError, "layers: .*got ''"),
        ({"layers": "("}, ValueError, "layers: expected a regular expression, got '\\('"),
        ({"layers": "attn3"}, ValueError, "matches none"),
        ({"layers": "all"}, ValueError, "layers='all' with LogN"),
        ({"layers": "cross"}, ValueError, "layers='cross' with LogN"),
        ({"train_size": 0}, ValueError, "train_size: expected .* got 0"),
        ({"train_size": "512"}, ValueError, "train_size: expected .* got '512'"),
        ({"train_size": (64, 64, 64)}, ValueError, r"train_size: expected .* got \(64, 64, 64\)"),
        ({"train_size": 33}, ValueError, "multiples of 2 pixels, got 33"),
    ],
)
def test_apply_refuses(options: dict, error: type[Exception], message: str):
    pipe = make_pipe()
    before = footprint(pipe.unet)
    with pytest.raises(error, match=message):
        apply(pipe, **options)
    assert footprint(pipe.unet) == before


def test_a_regex_that_matches_cross_attention_needs_train_tokens(unet):
    with apply(unet, layers="mid_block"), pytest.raises(ValueError, match=rf"{MID}\.attn2.*train_tokens"):
        denoise(unet)


@torch.no_grad()
def test_a_routed_denoiser_may_be_compiled():
    unet = make_unet(
        block_out_channels=(32,), down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",)
    )
    recorder = EntropyRecorder()
    with apply(unet, scale=Fixed(0.3), record=recorder) as handle:
        expected = denoise(unet)
        recorder.reset()
        compiled = torch.compile(unet, backend="eager")
        torch.testing.assert_close(denoise(compiled), expected, rtol=1e-4, atol=1e-5)
        assert len(recorder) == len(handle.layers)
    with pytest.raises(RuntimeError, match=r"OptimizedModule.*then compile it"):
        apply(compiled)


def test_other_models_are_refused():
    with pytest.raises(TypeError, match=r"pipe_or_denoiser: expected .* got 'unet'"):
        apply("unet")
    with pytest.raises(RuntimeError, match="Linear"):
        apply(torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="AutoencoderKL"):
        apply(make_pipe().vae)


def test_pipelines_of_other_denoisers_are_refused():
    from diffusers import DDPMScheduler, PriorTransformer, UnCLIPPipeline

    prior = PriorTransformer(num_attention_heads=2, attention_head_dim=8, embedding_dim=16, num_layers=1)
    names = ("decoder", "text_encoder", "tokenizer", "text_proj", "super_res_first", "super_res_last")
    schedulers = {f"{name}_scheduler": DDPMScheduler() for name in ("prior", "decoder", "super_res")}
    pipe = UnCLIPPipeline(prior=prior, **schedulers, **dict.fromkeys(names))
    with pytest.raises(RuntimeError, match=r"UnCLIPPipeline.*PriorTransformer.*UNet2DConditionModel.*Flux"):
        apply(pipe)
    with pytest.raises(RuntimeError, match=r"PriorTransformer.*expected one of UNet2D"):
        apply(prior)


def test_routed_layers_are_all_attention_layers(unet):
    handle = apply(unet)
    assert list(handle.layers) == [name for name, module in unet.named_modules() if isinstance(module, Attention)]
    assert "LogN" in repr(handle)
    handle.remove()
    assert "removed" in repr(handle)
