"""Pipelines with guidance: classes, dtypes, embeddings, adapters, and that nothing is left behind."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from diffusers import (
    StableDiffusionPipeline,
)

import entropy_attn as ea
from entropy_attn.guidance import TSAM
from entropy_attn.integrations.transformers import text_self_attention_maps
from tests.support.guided_pipes import draw, footprint, make_xl
from tests.support.tiny_models import make_text_pipe


@pytest.mark.parametrize("make", [make_text_pipe, make_xl], ids=["sd", "sdxl"])
def test_guided_pipelines_equal_their_parents_with_attached_guidance(make):
    parent = make()
    expected = draw(parent)
    cls = {StableDiffusionPipeline: ea.TSAMStableDiffusionPipeline}.get(type(parent), ea.TSAMStableDiffusionXLPipeline)
    pipe = cls.from_pipe(parent)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet is parent.unet
    before = footprint(parent)
    assert torch.equal(draw(pipe, guidance=None), expected) and pipe.last_guidance is None
    assert torch.equal(draw(pipe, guidance=TSAM(alpha=0.0)), expected)
    guided = draw(pipe)  # T-SAM is the default
    assert not torch.equal(guided, expected) and len(pipe.last_guidance.losses) == 3
    assert footprint(parent) == before
    with ea.guidance.attach(parent, TSAM()):
        assert torch.equal(draw(parent), guided)
    assert footprint(parent) == before and torch.equal(draw(parent), expected)


def test_from_pretrained():
    pipe = ea.TSAMStableDiffusionPipeline.from_pretrained(ea.shapes.MODEL_DIR, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "latent"}
    expected = ea.shapes.load_pipeline()("a red circle", generator=torch.Generator().manual_seed(0), **options).images
    found = pipe("a red circle", generator=torch.Generator().manual_seed(0), guidance=TSAM(alpha=0.0), **options).images
    assert torch.equal(found, expected)


def test_the_sdxl_mean_counts_each_encoder_as_one_half():
    pipe = make_xl()
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        draw(pipe)
    ids = torch.tensor([handle.prompts[0].text.ids])
    halves = [text_self_attention_maps(each, ids)[1].mean(0)[0] for each in (pipe.text_encoder, pipe.text_encoder_2)]
    torch.testing.assert_close(handle.prompts[0].attention, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    pipe = make_text_pipe().to(dtype=dtype)
    try:
        expected = draw(pipe)
    except RuntimeError as error:  # this CPU lacks an operation
        pytest.skip(str(error))
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe), expected)
    assert handle.maps.dtype == torch.float32 and handle.losses[0][1].dtype == torch.float32
    with ea.guidance.attach(pipe, TSAM()):
        guided = draw(pipe)
    assert guided.dtype == dtype and guided.isfinite().all() and not torch.equal(guided, expected)


def test_inference_mode_and_callbacks():
    pipe, seen = make_text_pipe(), []
    expected = None

    def callback(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].clone())
        return {"latents": tensors["latents"] * 0.9}

    with ea.guidance.attach(pipe, TSAM()):
        expected = draw(pipe, callback_on_step_end=callback)
        with torch.inference_mode():
            found = draw(pipe, callback_on_step_end=callback)
    assert torch.equal(found, expected) and len(seen) == 6 and torch.equal(seen[2] * 0.9, expected)


def test_embeddings_need_the_text():
    pipe = make_text_pipe()
    embeds, negative = pipe.encode_prompt("ab c d", "cpu", 1, True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
    with ea.guidance.attach(pipe, TSAM()):
        expected = draw(pipe)
        with pytest.raises(ValueError, match=r"prompt=\.\.\..*guidance_prompt="):
            draw(pipe, None, **given)
    with ea.guidance.attach(pipe, TSAM(), prompt="ab c d"):
        assert torch.equal(draw(pipe, None, **given), expected)
    pipeline = ea.TSAMStableDiffusionPipeline.from_pipe(pipe)
    assert torch.equal(draw(pipeline, None, guidance_prompt="ab c d", **given), expected)
    with ea.guidance.attach(pipe, TSAM(), prompt="ab c d"), pytest.raises(ValueError, match="9 positions"):
        draw(pipe, None, prompt_embeds=torch.cat([embeds, embeds[:, :2]], 1),
             negative_prompt_embeds=torch.cat([embeds, embeds[:, :2]], 1))  # fmt: skip


@pytest.mark.parametrize("prompt", ["c", ""])
def test_a_single_word_gives_a_warning_and_no_guidance(prompt):
    pipe = make_text_pipe()
    expected = draw(pipe, prompt)
    with ea.guidance.attach(pipe, TSAM()) as handle:
        with pytest.warns(UserWarning, match="too few words") as said:
            assert torch.equal(draw(pipe, prompt), expected)
        assert len(said) == 1 and handle.losses == []
        with pytest.warns(UserWarning, match="too few words"):
            draw(pipe, [prompt, "ab c d"])
        assert handle.losses[0][1][0] == 0 and handle.losses[0][1][1] > 0


def test_long_prompts_are_truncated_like_in_the_tokenizer():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()) as handle:
        draw(pipe, "a b c d e f g h i")
    assert handle.prompts[0].tokens == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_when_a_generation_fails(error):
    pipe = make_text_pipe()
    before, expected = footprint(pipe), draw(pipe)
    before = footprint(pipe)

    def stop(*_):
        raise error

    handle = ea.guidance.attach(pipe, TSAM())
    assert repr(handle).startswith("<GuidanceHandle, TSAM(")
    hook = pipe.unet.mid_block.register_forward_pre_hook(stop)
    with pytest.raises(error):
        draw(pipe)
    hook.remove()
    handle.remove()
    handle.remove()
    assert not handle.active and footprint(pipe) == before and torch.equal(draw(pipe), expected)


def test_a_removed_guidance_does_not_keep_the_pipeline_alive():
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()) as handle:
        draw(pipe)
    held = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert held() is None and len(handle.losses) == 3 and len(handle.prompts) == 1


def test_another_pipeline_with_the_same_modules_is_not_guided():
    pipe = make_text_pipe()
    other = StableDiffusionPipeline.from_pipe(pipe)
    expected = draw(other)
    with ea.guidance.attach(pipe, TSAM()):
        assert torch.equal(draw(other), expected)
        assert torch.equal(draw(copy.deepcopy(pipe)), expected)
        assert not torch.equal(draw(pipe), expected)


def test_a_user_defined_loss():
    pipe, seen = make_text_pipe(), []

    def loss(maps, prompt):
        seen.append((tuple(maps.shape), prompt.text.find("ab").positions, prompt.previous is None))
        return maps[..., list(prompt.tokens)].sum()

    with ea.guidance.attach(pipe, loss) as handle:
        draw(pipe)
    assert seen[0] == ((16, 24, 7), (1, 2), True) or seen[0] == ((8, 12, 7), (1, 2), True)
    assert [first for *_, first in seen] == [True, False, False] and len(handle.losses) == 3
    with ea.guidance.attach(pipe, lambda maps, prompt: 3.0), pytest.raises(TypeError, match="0-d"):
        draw(pipe)


def add_ip_adapter(unet, width: int = 16, tokens: int = 4) -> None:
    torch.manual_seed(6)
    weights, cross = {}, unet.config.cross_attention_dim
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            inner = unet.get_submodule(name.removesuffix(".processor")).to_k.weight.shape[0]
            weights |= {f"{number}.to_{which}_ip.weight": torch.randn(inner, cross) for which in "kv"}
    projection = {
        "proj.weight": torch.randn(tokens * cross, width) * 0.1,
        "proj.bias": torch.zeros(tokens * cross),
        "norm.weight": torch.ones(cross),
        "norm.bias": torch.zeros(cross),
    }
    unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])


def test_with_an_ip_adapter():
    pipe = make_text_pipe()
    plain = draw(pipe)
    add_ip_adapter(pipe.unet)
    embeds = torch.randn(2, 1, 16, generator=torch.Generator().manual_seed(8))
    options = {"ip_adapter_image_embeds": [embeds]}
    expected = draw(pipe, **options)
    assert not torch.equal(expected, plain)
    with ea.guidance.attach(pipe, TSAM(alpha=0.0)) as handle:
        assert torch.equal(draw(pipe, **options), expected)
        torch.testing.assert_close(handle.maps.sum(-1), torch.ones(handle.maps.shape[:-1]))
    with ea.guidance.attach(pipe, TSAM()):
        assert not torch.equal(draw(pipe, **options), expected)


def test_with_offloading():
    """The hooks of enable_model_cpu_offload, which itself needs a GPU."""
    accelerate = pytest.importorskip("accelerate")
    pipe = make_text_pipe()
    with ea.guidance.attach(pipe, TSAM()):
        expected, before = draw(pipe), None
        for part in (pipe.text_encoder, pipe.unet, pipe.vae):
            _, before = accelerate.cpu_offload_with_hook(part, "cpu", before)
        assert torch.equal(draw(pipe), expected)
